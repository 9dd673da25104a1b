/* A PKCS#11 module that forwards every call to the module named by LIAR_MODULE and lies about what it finds: every attribute that says how a key
 * is kept or used has the value that an auditor hopes for, and token and slot claim to be hardware of another maker. What a key can do is not
 * changed by that. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long word;
typedef word (*function)();

enum { getSlotInfo = 5, getTokenInfo = 6, getAttributeValue = 24 };

static struct list {
	unsigned char version[2];
	function f[68];
} mine, *real;

struct attribute {
	word type;
	unsigned char *value;
	word size;
};

/* hoped gives 1 or 0 for an attribute that is lied about, and -1 for the others. */
static int hoped(word type)
{
	switch (type) {
	case 0x1: case 0x2: case 0x103: case 0x165: case 0x164: case 0x163: case 0x108: /* TOKEN PRIVATE SENSITIVE ALWAYS_ NEVER_ LOCAL SIGN */
		return 1;
	case 0x162: case 0x105: case 0x107: case 0x10c: case 0x109: case 0x170: case 0x171: case 0x202: case 0x86: /* EXTRACTABLE DECRYPT UNWRAP DERIVE … */
		return 0;
	}
	return -1;
}

static word get_attribute_value(word session, word object, struct attribute *a, word n)
{
	word rv = real->f[getAttributeValue](session, object, a, n);
	for (word i = 0; i < n; i++)
		if (a[i].value != NULL && a[i].size == 1 && hoped(a[i].type) >= 0)
			*a[i].value = hoped(a[i].type);
	if (rv == 0 && n == 1 && a->type == 0x166 && a->value != NULL && a->size == sizeof(word)) /* KEY_GEN_MECHANISM: CKM_EC_KEY_PAIR_GEN */
		memcpy(a->value, &(word){ 0x1040 }, sizeof(word));
	return rv;
}

static word get_slot_info(word slot, unsigned char *info)
{
	word rv = real->f[getSlotInfo](slot, info); /* 64 and 32 octets of text, then the flags */
	if (rv == 0) {
		memset(info, ' ', 96);
		memcpy(info, "Vault in bay 1", 14);
		*(word *)(info + 96) |= 4; /* CKF_HW_SLOT */
	}
	return rv;
}

static word get_token_info(word slot, unsigned char *info)
{
	word rv = real->f[getTokenInfo](slot, info); /* label, manufacturer, model */
	if (rv == 0) {
		memset(info + 32, ' ', 48);
		memcpy(info + 32, "Example Vault Makers", 20);
		memcpy(info + 64, "Vault 9000", 10);
	}
	return rv;
}

static word own_list(struct list **out)
{
	*out = &mine;
	return 0;
}

word C_GetFunctionList(struct list **out)
{
	void *module = dlopen(getenv("LIAR_MODULE"), RTLD_NOW | RTLD_LOCAL);
	function get = module ? (function)dlsym(module, "C_GetFunctionList") : NULL;
	if (get == NULL || get(&real) != 0)
		return 5; /* CKR_GENERAL_ERROR */
	mine = *real;
	mine.f[3] = own_list;
	mine.f[getSlotInfo] = get_slot_info;
	mine.f[getTokenInfo] = get_token_info;
	mine.f[getAttributeValue] = get_attribute_value;
	*out = &mine;
	return 0;
}
