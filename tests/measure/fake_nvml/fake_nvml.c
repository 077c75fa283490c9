/* A small stand-in for libnvidia-ml.so.1: what it answers stands in the file named by FAKE_NVML.
 *
 * The file is read anew at every call, so that a test can change the GPU while a run is under way.
 * Each line is "key value"; the keys, with their defaults, are in the calls of number() below. A key
 * after "gpuN." is that of GPU N alone. "fail.FUNCTION code" makes a function return an NVML error code;
 * of GPU N alone where it is one of those that find it.
 *
 * -DOLD_DRIVER builds a driver from before version 3 of the process list and the clocks event reasons.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7 };

typedef struct { int index; } Device;
typedef struct { uint64_t total, free, used; } Memory;
typedef struct { uint32_t gpu, memory; } Utilization;
typedef struct { uint32_t pid; uint64_t used; uint32_t gpu_instance, compute_instance; } Process;

static Device devices[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};

/* The value of the last line with this key in `answer`; 0 if there is none. */
static int text(const char *key, char answer[96])
{
    char line[256], name[128], value[96];
    int found = 0;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%127s %95s", name, value) == 2 && strcmp(name, key) == 0) {
            strcpy(answer, value);
            found = 1;
        }
    if (file)
        fclose(file);
    return found;
}

static long long number(const char *key, long long fallback)
{
    char value[96];
    return text(key, value) ? strtoll(value, NULL, 0) : fallback;
}

static long long of(const Device *device, const char *key, long long fallback)
{
    char own[128];
    snprintf(own, sizeof own, "gpu%d.%s", device->index, key);
    return number(own, number(key, fallback));
}

static int failure(const char *function)
{
    char key[128];
    snprintf(key, sizeof key, "fail.%s", function);
    return (int)number(key, SUCCESS);
}

#define ANSWER(statement)                 \
    do {                                  \
        int code = failure(__func__);     \
        if (code != SUCCESS)              \
            return code;                  \
        statement;                        \
        return SUCCESS;                   \
    } while (0)

#define ANSWER_OF(device, statement)                                 \
    do {                                                             \
        char key[128];                                               \
        snprintf(key, sizeof key, "fail.%s", __func__);              \
        int code = (int)of(device, key, SUCCESS);                    \
        if (code != SUCCESS)                                         \
            return code;                                             \
        statement;                                                   \
        return SUCCESS;                                              \
    } while (0)

int nvmlInitWithFlags(unsigned flags) { (void)flags; ANSWER(); }
int nvmlShutdown(void) { ANSWER(); }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) { ANSWER(snprintf(version, length, "570.00.01")); }
int nvmlSystemGetCudaDriverVersion(int *version) { ANSWER(*version = (int)number("cuda_driver", 12080)); }
int nvmlDeviceGetCount_v2(unsigned *count) { ANSWER(*count = (unsigned)number("count", 1)); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) { ANSWER_OF(&devices[index], *device = &devices[index]); }

/* GPU 0 is GPU-00000000-…, GPU 1 is GPU-11111111-…, and so on. */
int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length)
{
    int n = device->index;
    ANSWER_OF(device, snprintf(uuid, length, "GPU-%d%d%d%d%d%d%d%d-aaaa-bbbb-cccc-dddddddddddd", n, n, n, n, n, n, n, n));
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length)
{
    char key[16];
    snprintf(key, sizeof key, "gpu%d.name", device->index);
    char value[96] = "Fake-GPU";
    text(key, value);
    ANSWER_OF(device, snprintf(name, length, "%s", value));
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending)
{
    ANSWER(*current = *pending = (unsigned)of(device, "mig", 0));
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory)
{
    ANSWER_OF(device, memory->total = 24ull << 30; memory->used = (uint64_t)of(device, "used", 1 << 20);
           memory->free = memory->total - memory->used);
}

/* Always lists one process of someone else's, and this one unless "pid" says otherwise. */
static int processes(Device *device, unsigned *count, Process *list)
{
    unsigned room = *count;
    usleep((useconds_t)number("delay_us", 0));
    *count = 2;
    if (room < 2)
        return INSUFFICIENT_SIZE;
    list[0] = (Process){4000000001u, 5 << 20, 0, 0};
    list[1] = (Process){(uint32_t)number("pid", getpid()), (uint64_t)of(device, "process_used", 1 << 20), 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, uint64_t *millijoules)
{
    ANSWER(*millijoules = (uint64_t)of(device, "energy_mj", 0));
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates)
{
    ANSWER(rates->gpu = (uint32_t)of(device, "utilisation", 50); rates->memory = 0);
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) { ANSWER(*milliwatts = (unsigned)of(device, "power_mw", 150500)); }
int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *milliwatts) { (void)device; ANSWER(*milliwatts = 350000); }

/* Clock 1 is that of the multiprocessors, 2 that of the memory. */
int nvmlDeviceGetClockInfo(Device *device, int clock, unsigned *mhz) { (void)device; ANSWER(*mhz = clock == 1 ? 1410 : 1215); }
int nvmlDeviceGetMaxClockInfo(Device *device, int clock, unsigned *mhz) { (void)device; ANSWER(*mhz = clock == 1 ? 1980 : 1215); }
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) { (void)device; (void)sensor; ANSWER(*celsius = 61); }

#ifdef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, Process *list)
#else
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *list)
#endif
{
    int code = failure(__func__);
    return code != SUCCESS ? code : processes(device, count, list);
}

#ifdef OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, uint64_t *bits)
#else
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, uint64_t *bits)
#endif
{
    ANSWER(*bits = (uint64_t)of(device, "clock_limits", 0));
}
