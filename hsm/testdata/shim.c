/* A PKCS#11 module that forwards every call to the module named by SHIM_MODULE and spoils some of them.
 *
 * Each call appends its name to the file SHIM_LOG, "hangs" when it hangs, and "over" when one that hung has returned. Before it is forwarded, the file SHIM_CONTROL is read: lines of
 *
 *     FUNCTION ACTION [AFTER [TIMES]]
 *
 * ACTION is a return code (0x30), "hang" (until the line is gone from the file), or, after a call that went well:
 * "then=0x5" (it says that it did not), "short" (C_Sign returns one octet less), "wrong" (another signature), "flags=0x20000" and "sessions=2" (C_GetTokenInfo). AFTER lets so many calls
 * pass first, TIMES bounds how many are spoiled. "C_GetAttributeValue deny=353" makes attribute type 353 one that the
 * token does not know, and so for C_GenerateKeyPair; "deny=353:0x30" fails on it with that code. "* renumber=7" adds 7 to every slot number.
 *
 * Arguments are passed on as eight machine words, which is how the ABIs of x86-64 and arm64 pass integers and pointers. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*function)(word, word, word, word, word, word, word, word);

static const char *names[68] = {
	"C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo",
	"C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession", "C_CloseSession",
	"C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState", "C_Login", "C_Logout",
	"C_CreateObject", "C_CopyObject", "C_DestroyObject", "C_GetObjectSize", "C_GetAttributeValue", "C_SetAttributeValue",
	"C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt", "C_EncryptUpdate",
	"C_EncryptFinal", "C_DecryptInit", "C_Decrypt", "C_DecryptUpdate", "C_DecryptFinal", "C_DigestInit", "C_Digest",
	"C_DigestUpdate", "C_DigestKey", "C_DigestFinal", "C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal",
	"C_SignRecoverInit", "C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate", "C_VerifyFinal",
	"C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate", "C_DecryptDigestUpdate", "C_SignEncryptUpdate",
	"C_DecryptVerifyUpdate", "C_GenerateKey", "C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey", "C_DeriveKey",
	"C_SeedRandom", "C_GenerateRandom", "C_GetFunctionStatus", "C_CancelFunction", "C_WaitForSlotEvent",
};

struct list {
	unsigned char version[2];
	function f[68];
};
static struct list mine;
static struct list *real;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static word count[68]; /* calls since the control file last changed */
static char seen[4096];

struct rule {
	char action[64];
	word denied[8], code[8];
	int denials;
};

/* rule_for finds the rule of function i, and the number of slots to add; it counts the call when asked to. */
static int rule_for(int i, struct rule *r, word *renumber, int counting)
{
	char text[4096] = "";
	FILE *f = fopen(getenv("SHIM_CONTROL") ? getenv("SHIM_CONTROL") : "", "r");
	if (f != NULL) {
		text[fread(text, 1, sizeof text - 1, f)] = 0;
		fclose(f);
	}
	*renumber = 0;
	int found = 0;
	r->denials = 0;
	pthread_mutex_lock(&mutex);
	if (strcmp(text, seen) != 0) {
		strcpy(seen, text);
		memset(count, 0, sizeof count);
	}
	word n = counting ? count[i]++ : 0;
	pthread_mutex_unlock(&mutex);
	for (char *save, *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
		char name[64] = "";
		char action[64];
		word after = 0, times = -1;
		if (sscanf(line, "%63s %63s %lu %lu", name, action, &after, &times) < 2)
			continue;
		if (strcmp(name, "*") == 0)
			sscanf(action, "renumber=%lu", renumber);
		if (strcmp(name, names[i]) != 0)
			continue;
		if (strncmp(action, "deny=", 5) == 0 && r->denials < 8) {
			r->code[r->denials] = 0x12;
			sscanf(action, "deny=%lu:%lx", &r->denied[r->denials], &r->code[r->denials]);
			r->denials++;
		}
		else if (!found && (!counting || (n >= after && n - after < times))) {
			strcpy(r->action, action);
			found = 1;
		}
	}
	return found;
}

static void trace(const char *name)
{
	char line[64];
	if (getenv("SHIM_LOG") == NULL)
		return;
	FILE *f = fopen(getenv("SHIM_LOG"), "a");
	if (f == NULL)
		return;
	fwrite(line, 1, snprintf(line, sizeof line, "%s\n", name), f);
	fclose(f);
}

/* denies looks for a denied type in a template of CK_ATTRIBUTE {type, value, length}, and returns its code. */
static word denies(const struct rule *r, word template, word n)
{
	for (word k = 0; k < n; k++)
		for (int j = 0; j < r->denials; j++)
			if (((word *)template)[3 * k] == r->denied[j])
				return r->code[j];
	return 0;
}

static word call(int i, word a, word b, word c, word d, word e, word f, word g, word h)
{
	struct rule r = { "" };
	word renumber;
	trace(names[i]);
	int spoiled = rule_for(i, &r, &renumber, 1);
	int hung = spoiled && strcmp(r.action, "hang") == 0;
	if (hung) {
		trace("hangs");
		while (rule_for(i, &r, &renumber, 0) && strcmp(r.action, "hang") == 0)
			usleep(5000);
		spoiled = 0;
	}
	if (spoiled && strncmp(r.action, "0x", 2) == 0)
		return strtoul(r.action, NULL, 16);
	word denied = 0;
	if (i == 24) /* C_GetAttributeValue(session, object, template, size) */
		denied = denies(&r, c, d);
	if (i == 59 && (denied = denies(&r, c, d)) == 0) /* C_GenerateKeyPair(session, mechanism, two templates, …) */
		denied = denies(&r, e, f);
	if (denied != 0)
		return denied;
	if ((i >= 5 && i <= 9) || i == 12 || i == 14)
		a -= renumber;
	word rv = real->f[i](a, b, c, d, e, f, g, h);
	if (hung)
		trace("over");
	if (rv != 0)
		return rv;
	if (i == 4 && b != 0) /* C_GetSlotList */
		for (word k = 0; k < *(word *)c; k++)
			((word *)b)[k] += renumber;
	if (spoiled && strncmp(r.action, "then=", 5) == 0)
		return strtoul(r.action + 5, NULL, 16);
	if (spoiled && strcmp(r.action, "short") == 0 && d != 0) /* C_Sign(session, data, size, signature, &size) */
		--*(word *)e;
	if (spoiled && strcmp(r.action, "wrong") == 0 && d != 0)
		((unsigned char *)d)[*(word *)e - 1] ^= 1;
	if (spoiled && i == 6) { /* CK_TOKEN_INFO: 96 octets of text, flags, ulMaxSessionCount */
		word v;
		if (sscanf(r.action, "flags=%lx", &v) == 1)
			((word *)b)[12] |= v;
		if (sscanf(r.action, "sessions=%lu", &v) == 1)
			((word *)b)[13] = v;
	}
	return 0;
}

#define STUB(i) \
	static word s##i(word a, word b, word c, word d, word e, word f, word g, word h) { return call(i, a, b, c, d, e, f, g, h); }
#define TEN(x, n) x(n##0) x(n##1) x(n##2) x(n##3) x(n##4) x(n##5) x(n##6) x(n##7) x(n##8) x(n##9)
#define ALL(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) TEN(x, 1) TEN(x, 2) TEN(x, 3) TEN(x, 4) TEN(x, 5) \
	x(60) x(61) x(62) x(63) x(64) x(65) x(66) x(67)
ALL(STUB)

static word own_list(word out) { *(struct list **)out = &mine; return 0; }

word C_GetFunctionList(struct list **out)
{
	if (real == NULL) {
		void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);
		word (*get)(struct list **) = module ? (word (*)(struct list **))dlsym(module, "C_GetFunctionList") : NULL;
		if (get == NULL || get(&real) != 0)
			return 5; /* CKR_GENERAL_ERROR */
	}
	memcpy(mine.version, real->version, 2);
#define SET(i) mine.f[i] = s##i;
	ALL(SET)
	mine.f[3] = (function)own_list;
	*out = &mine;
	return 0;
}
