package hsm

import (
	"errors"

	"github.com/miekg/pkcs11"
)

var (
	// ErrTokenLost: the token or its library is beyond repair in this process. Only C_Finalize and C_Initialize heal
	// that, and only a new process can be sure of both.
	ErrTokenLost = errors.New("token lost")

	// ErrPIN: the token refused the PIN, or an earlier refusal stands. Never try again without a person: the next try
	// may lock the token.
	ErrPIN = errors.New("PIN refused")

	// errStuck: a call into the module did not return in time. It cannot be cancelled.
	errStuck = errors.New("the module did not answer in time")
)

// ckrTokenResourceExceeded is of PKCS#11 3.0; miekg/pkcs11 does not have it.
const ckrTokenResourceExceeded = 0x201

// fault says what an error of the module means for what comes next.
type fault int

const (
	faultCall    fault = iota // this call was wrong; the next may be right
	faultSession              // the session is broken; a new one may do
	faultToken                // the token is gone: ErrTokenLost
	faultPIN                  // the token will have no more of this PIN: ErrPIN
)

// faultOf classifies an error. A key handle that stopped being valid and a login that is gone mean that the token was
// reset under us: handles would have to be found again and the PIN given again, which is what a restart does, once. Vendors
// have codes of their own for a connection that broke, which a new session may mend, and if not, a new process.
func faultOf(err error) fault {
	if errors.Is(err, errStuck) {
		return faultSession
	}
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return faultCall
	}
	switch code {
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID:
		return faultToken
	case pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE:
		return faultPIN
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_GENERAL_ERROR,
		pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_FUNCTION_CANCELED, pkcs11.CKR_CANCEL, pkcs11.CKR_HOST_MEMORY,
		pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_CANT_LOCK, pkcs11.CKR_MUTEX_BAD, ckrTokenResourceExceeded:
		return faultSession
	}
	if code >= pkcs11.CKR_VENDOR_DEFINED {
		return faultSession
	}
	return faultCall
}

// pinRefused reports whether the outcome of C_Login must be taken for a refused PIN. Some modules hide a refusal
// behind a general error, so all is refusal but what says that the PIN was never looked at.
func pinRefused(err error) bool {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	switch code {
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SESSION_HANDLE_INVALID,
		pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_MEMORY,
		pkcs11.CKR_USER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES,
		pkcs11.CKR_OPERATION_ACTIVE:
		return false
	}
	return true
}

func isCode(err error, codes ...pkcs11.Error) bool {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return false
	}
	for _, c := range codes {
		if c == code {
			return true
		}
	}
	return false
}
