/* A libnvidia-ml.so.1 of four cards for tests: the third of them is lost, the second has no NVLink on link 1.
 * cc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml_stub.c
 * NVML_STUB_INIT: what nvmlInit returns. NVML_STUB_HANG: nvmlInit never comes back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15, CARDS = 4 };

typedef struct { int number; } Card;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; } Fabric;

static Card cards[CARDS];

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    for (int i = 0; i < CARDS; i++) cards[i].number = i;
    while (getenv("NVML_STUB_HANG")) sleep(1);
    return getenv("NVML_STUB_INIT") ? atoi(getenv("NVML_STUB_INIT")) : OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == NOT_SUPPORTED ? "Not Supported" : code == LOST ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "Unknown Error";
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "580.65.06"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = CARDS; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **out) { *out = &cards[index]; return index == 2 ? LOST : OK; }
int nvmlDeviceGetName(Card *card, char *out, unsigned size) { snprintf(out, size, "Stub GPU %s", card->number == 3 ? "B" : "A"); return OK; }
int nvmlDeviceGetPciInfo_v3(Card *card, Pci *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", 0x1A + card->number);
    return OK;
}
int nvmlDeviceGetMemoryInfo(Card *card, Memory *out) { (void)card; out->total = 80ull << 30; return OK; }
int nvmlDeviceGetBAR1MemoryInfo(Card *card, Memory *out) { (void)card; out->total = 256ull << 20; return OK; }
int nvmlDeviceGetDisplayMode(Card *card, int *out) { *out = card->number == 0; return OK; }
int nvmlDeviceGetMigMode(Card *card, unsigned *now, unsigned *later) { (void)card; *now = *later = 0; return NOT_SUPPORTED; }
int nvmlDeviceGetCurrPcieLinkWidth(Card *card, unsigned *out) { *out = card->number == 1 ? 8 : 16; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(Card *card, unsigned *out) { (void)card; *out = 16; return OK; }
int nvmlDeviceGetP2PStatus(Card *a, Card *b, int cap, int *out) {
    (void)cap;
    *out = a->number + b->number == 1 ? 0 : 1;
    return OK;
}
int nvmlDeviceGetNvLinkState(Card *card, unsigned link, unsigned *out) {
    *out = !(card->number == 1 && link == 1);
    return card->number < 2 && link < 2 ? OK : link < 2 ? NOT_SUPPORTED : INVALID;
}
int nvmlDeviceGetNvLinkErrorCounter(Card *card, unsigned link, int counter, unsigned long long *out) {
    *out = card->number == 0 && link == 0 && counter == 0 ? 7 : 0;
    return OK;
}
int nvmlDeviceGetGpuFabricInfo(Card *card, Fabric *out) { /* writes through its argument: a structure passed by value ends the process */
    (void)card;
    memset(out, 0, sizeof *out);
    out->state = 2;
    return OK;
}
