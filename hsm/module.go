package hsm

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// The start of CK_FUNCTION_LIST: a version of two octets, then pointers in the order of the standard.
typedef struct {
	unsigned char version[2];
	void *f[19];
} functions;

enum { indexLogin = 18 };

// What miekg/pkcs11 1.1 keeps of a module that it has loaded.
typedef struct {
	void *handle;
	functions *list;
} context;

// find opens the library, so that what is wrong with it can be told.
static const char *find(const char *path, void **handle) {
	*handle = dlopen(path, RTLD_LAZY);
	if (*handle == NULL)
		return dlerror();
	if (dlsym(*handle, "C_GetFunctionList") == NULL)
		return "it has no C_GetFunctionList, so it is no PKCS#11 module";
	return NULL;
}

// list_of takes the function list out of miekg/pkcs11's context. Opening a library twice gives the same handle, which shows
// that the context is what we think it is.
static const char *list_of(context *c, void *handle, functions **list) {
	if (c->handle != handle)
		return "miekg/pkcs11 has another inside than the version that this was written for";
	*list = c->list;
	return *list == NULL ? "its C_GetFunctionList failed" : NULL;
}

// login calls C_Login for CKU_USER and wipes the PIN, however that ended.
static unsigned long login(functions *list, unsigned long session, unsigned char *pin, unsigned long size) {
	unsigned long (*f)(unsigned long, unsigned long, unsigned char *, unsigned long) =
		(unsigned long (*)(unsigned long, unsigned long, unsigned char *, unsigned long))list->f[indexLogin];
	mlock(pin, size);
	unsigned long rv = f(session, 1, pin, size);
	explicit_bzero(pin, size);
	munlock(pin, size);
	free(pin);
	return rv;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// module is a loaded PKCS#11 library. A process has one of each, since C_Initialize and a login hold for all of the
// process; the last user ends it.
type module struct {
	path     string
	ctx      *pkcs11.Ctx
	list     *C.functions
	initArgs string
	reserved unsafe.Pointer  // initArgs for C
	users    int             // Tokens and listings that need it initialized
	open     map[string]bool // tokens open in this process, by serial and label
	hung     bool            // C_Initialize or C_Finalize never returned, or calls were stuck when the last user left
}

var modules = struct {
	sync.Mutex
	byPath map[string]*module
}{byPath: make(map[string]*module)}

// acquireModule loads and initializes the library at path, or shares it with those who did.
func acquireModule(path, initArgs string, deadline time.Duration) (*module, error) {
	if path == "" {
		return nil, errors.New("the token's URI has no module-path; add ?module-path=/path/of/the/module.so")
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 module %s: %w; is the package of the token installed?", path, errors.Unwrap(err))
	}
	modules.Lock()
	defer modules.Unlock()
	m := modules.byPath[real]
	if m == nil {
		m, err = await(deadline, func() (*module, error) { return load(real) }, nil)
		if errors.Is(err, errStuck) {
			return nil, fmt.Errorf("%w: PKCS#11 module %s: loading it: %w", ErrTokenLost, path, err)
		} else if err != nil {
			return nil, fmt.Errorf("PKCS#11 module %s: %w", path, err)
		}
		modules.byPath[real] = m
	}
	switch {
	case m.hung:
		return nil, fmt.Errorf("%w: PKCS#11 module %s hangs in this process", ErrTokenLost, path)
	case m.users > 0 && m.initArgs != initArgs:
		return nil, fmt.Errorf("PKCS#11 module %s: two tokens give it different init_args", path)
	case m.users == 0:
		if err := m.initialize(initArgs, deadline); err != nil {
			return nil, err
		}
	}
	m.users++
	return m, nil
}

// load asks for the function list once, and logs in and signs by the same one: p11-kit's client makes a connection of its own,
// without a login, for each that it gives out.
func load(path string) (*module, error) {
	p := C.CString(path)
	defer C.free(unsafe.Pointer(p))
	var handle unsafe.Pointer
	if e := C.find(p, &handle); e != nil {
		return nil, errors.New(strings.TrimPrefix(C.GoString(e), path+": "))
	}
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, errors.New("cannot be loaded a second time")
	}
	var list *C.functions
	if e := C.list_of(*(**C.context)(unsafe.Pointer(ctx)), handle, &list); e != nil {
		return nil, errors.New(C.GoString(e))
	}
	return &module{path: path, ctx: ctx, list: list, open: make(map[string]bool)}, nil
}

func (m *module) initialize(initArgs string, deadline time.Duration) error {
	C.free(m.reserved)
	m.reserved, m.initArgs = nil, initArgs
	options := []pkcs11.InitializeOption{pkcs11.InitializeWithFlags(pkcs11.CKF_OS_LOCKING_OK)}
	if initArgs != "" {
		m.reserved = unsafe.Pointer(C.CString(initArgs))
		options = append(options, pkcs11.InitializeWithReserved(m.reserved))
	}
	_, err := await(deadline, func() (struct{}, error) { return struct{}{}, m.ctx.Initialize(options...) }, nil)
	if errors.Is(err, errStuck) {
		m.hung = true
		return fmt.Errorf("%w: PKCS#11 module %s: C_Initialize: %w", ErrTokenLost, m.path, err)
	}
	if err != nil && !isCode(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) { // by us, when its C_Finalize failed
		return fmt.Errorf("PKCS#11 module %s: C_Initialize: %w", m.path, err)
	}
	return nil
}

// release ends one use. With calls stuck in the module, C_Finalize would wait for them: then it stays as it is.
func (m *module) release(stuck bool, deadline time.Duration) {
	modules.Lock()
	defer modules.Unlock()
	m.hung = m.hung || stuck
	m.users--
	if m.users > 0 || m.hung {
		return
	}
	if _, err := await(deadline, func() (struct{}, error) { return struct{}{}, m.ctx.Finalize() }, nil); errors.Is(err, errStuck) {
		m.hung = true
	}
}

// claim keeps a second Token off a token that is open: its C_Login would be answered "already logged in" without a
// look at the PIN.
func (m *module) claim(id string) bool {
	modules.Lock()
	defer modules.Unlock()
	if m.open[id] {
		return false
	}
	m.open[id] = true
	return true
}

func (m *module) unclaim(id string) {
	modules.Lock()
	defer modules.Unlock()
	delete(m.open, id)
}

// login gives the PIN to C_Login, once. miekg/pkcs11 would leave a copy of it on the heap; here the one copy is wiped
// in the same breath.
func (m *module) login(session pkcs11.SessionHandle, pin []byte) error {
	rv := C.login(m.list, C.ulong(session), (*C.uchar)(C.CBytes(pin)), C.ulong(len(pin)))
	if rv != pkcs11.CKR_OK {
		return pkcs11.Error(rv)
	}
	return nil
}

// tokens lists the initialized tokens of the module.
func (m *module) tokens() ([]TokenInfo, error) {
	library, err := m.ctx.GetInfo()
	if err != nil {
		return nil, fmt.Errorf("C_GetInfo: %w", err)
	}
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return nil, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var list []TokenInfo
	for _, id := range slots {
		t, err := m.ctx.GetTokenInfo(id)
		if isCode(err, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID) {
			continue // taken out since the list was made
		}
		if err != nil {
			return nil, fmt.Errorf("C_GetTokenInfo: %w", err)
		}
		if t.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		slot, err := m.ctx.GetSlotInfo(id)
		if err != nil {
			return nil, fmt.Errorf("C_GetSlotInfo: %w", err)
		}
		list = append(list, newTokenInfo(m.path, library, id, slot, t))
	}
	return list, nil
}

// after is the clock of deadlines. Tests let a deadline come when a call is known to hang.
var after = time.After

// await runs f, which calls into C and cannot be cancelled, and waits for it until the deadline. When f returns after
// that, its result goes to late, in f's own goroutine.
func await[T any](deadline time.Duration, f func() (T, error), late func(T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	gone := make(chan struct{})
	over := after(deadline)
	go func() {
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-gone:
			if late != nil {
				late(v, err)
			}
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-over:
		close(gone)
		var zero T
		return zero, fmt.Errorf("%w (%s)", errStuck, deadline)
	}
}
