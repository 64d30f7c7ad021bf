// Makes chosen system calls on a store's files fail. Loaded into the server by LD_PRELOAD, driven by a control file.
//
// IO_FAULTS_FOLDER: the data folder, as an absolute path. IO_FAULTS_CONTROL: a file of `struct control`, which
// the test writes and reads while the server runs. Calls on other files pass through.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { DATABASE, LOG, INDEX, KINDS, NONE = KINDS };
enum operation { READ, WRITE, SYNC, TRUNCATE, OPEN, OPERATIONS };
enum thread { ANY, COMMIT, FOLD, OTHER };

// All fields are 64-bit little-endian integers, in this order; `Control` in shim.rs knows the offsets.
struct control {
    _Atomic int64_t armed;
    _Atomic int64_t kind;           // KINDS: any
    _Atomic int64_t operation;
    _Atomic int64_t thread;
    _Atomic int64_t error;          // errno
    _Atomic int64_t first;          // the first matching call that fails, counted from 1
    _Atomic int64_t calls;          // how many fail
    _Atomic int64_t only_growth;    // 1: only writes beyond the end of the file match
    _Atomic int64_t seen;           // matching calls since it was armed
    _Atomic int64_t injected;       // calls that failed
    _Atomic int64_t counts[KINDS][OPERATIONS];
};

enum { DESCRIPTORS = 65536 };
static _Atomic unsigned char kinds[DESCRIPTORS];  // 0: not ours; else kind + 1
static struct control *control;
static char folder[4096];

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("IO_FAULTS_FOLDER"), *path = getenv("IO_FAULTS_CONTROL");
    if (!name || !path) return;
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int descriptor = real(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) abort();
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapped == MAP_FAILED) abort();
    strncpy(folder, name, sizeof folder - 1);
    control = mapped;
}

static enum kind kind_of_path(const char *path) {
    size_t length = strlen(folder);
    if (!control || !path || strncmp(path, folder, length) != 0 || path[length] != '/') return NONE;
    const char *name = path + length + 1;
    if (strcmp(name, "slotcast.db") == 0) return DATABASE;
    if (strcmp(name, "slotcast.db-wal") == 0) return LOG;
    if (strcmp(name, "slotcast.db-shm") == 0) return INDEX;
    return NONE;
}

static enum kind kind_of(int descriptor) {
    if (descriptor < 0 || descriptor >= DESCRIPTORS) return NONE;
    unsigned char known = kinds[descriptor];
    return known ? (enum kind)(known - 1) : NONE;
}

static int is_in_thread(int64_t wanted) {
    if (wanted == ANY) return 1;
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    enum thread thread = strcmp(name, "commit") == 0 ? COMMIT : strcmp(name, "slotcast-fold") == 0 ? FOLD : OTHER;
    return thread == wanted;
}

// Counts a call, and tells whether it is to fail; then errno is set.
static int fails(enum kind kind, enum operation operation, int grows) {
    if (!control || kind == NONE) return 0;
    control->counts[kind][operation]++;
    if (!control->armed || control->operation != (int64_t)operation) return 0;
    if (control->kind != KINDS && control->kind != (int64_t)kind) return 0;
    if ((control->only_growth && !grows) || !is_in_thread(control->thread)) return 0;
    int64_t number = ++control->seen;
    if (number < control->first || number - control->first >= control->calls) return 0;
    control->injected++;
    errno = (int)control->error;
    return 1;
}

static int grows(int descriptor, off64_t end) {
    struct stat64 status;
    return kind_of(descriptor) != NONE && fstat64(descriptor, &status) == 0 && end > status.st_size;
}

#define REAL(name) (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

#define OPENING(name)                                                                    \
    int name(const char *path, int flags, ...) {                                         \
        static __typeof__(&name) real;                                                   \
        if (!real) real = REAL(name);                                                    \
        mode_t mode = 0;                                                                 \
        if (flags & (O_CREAT | O_TMPFILE)) {                                             \
            va_list rest;                                                                \
            va_start(rest, flags);                                                       \
            mode = va_arg(rest, mode_t);                                                 \
            va_end(rest);                                                                \
        }                                                                                \
        enum kind kind = kind_of_path(path);                                             \
        if (fails(kind, OPEN, 0)) return -1;                                             \
        int descriptor = real(path, flags, mode);                                        \
        if (descriptor >= 0 && descriptor < DESCRIPTORS)                                 \
            kinds[descriptor] = kind == NONE ? 0 : (unsigned char)(kind + 1);            \
        return descriptor;                                                               \
    }
OPENING(open)
OPENING(open64)

int close(int descriptor) {
    static __typeof__(&close) real;
    if (!real) real = REAL(close);
    if (descriptor >= 0 && descriptor < DESCRIPTORS) kinds[descriptor] = 0;
    return real(descriptor);
}

#define TRANSFER(name, type, offset_type, operation, bytes_type)                         \
    type name(int descriptor, bytes_type bytes, size_t count, offset_type offset) {      \
        static __typeof__(&name) real;                                                   \
        if (!real) real = REAL(name);                                                    \
        int growth = operation == WRITE && grows(descriptor, offset + (off64_t)count);   \
        if (fails(kind_of(descriptor), operation, growth)) return -1;                    \
        return real(descriptor, bytes, count, offset);                                   \
    }
TRANSFER(pread, ssize_t, off_t, READ, void *)
TRANSFER(pread64, ssize_t, off64_t, READ, void *)
TRANSFER(pwrite, ssize_t, off_t, WRITE, const void *)
TRANSFER(pwrite64, ssize_t, off64_t, WRITE, const void *)

ssize_t read(int descriptor, void *bytes, size_t count) {
    static __typeof__(&read) real;
    if (!real) real = REAL(read);
    if (fails(kind_of(descriptor), READ, 0)) return -1;
    return real(descriptor, bytes, count);
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    static __typeof__(&write) real;
    if (!real) real = REAL(write);
    if (fails(kind_of(descriptor), WRITE, 1)) return -1;
    return real(descriptor, bytes, count);
}

#define SYNCING(name)                                                                    \
    int name(int descriptor) {                                                           \
        static __typeof__(&name) real;                                                   \
        if (!real) real = REAL(name);                                                    \
        if (fails(kind_of(descriptor), SYNC, 0)) return -1;                              \
        return real(descriptor);                                                         \
    }
SYNCING(fsync)
SYNCING(fdatasync)

#define TRUNCATING(name, offset_type)                                                    \
    int name(int descriptor, offset_type length) {                                       \
        static __typeof__(&name) real;                                                   \
        if (!real) real = REAL(name);                                                    \
        if (fails(kind_of(descriptor), TRUNCATE, grows(descriptor, length))) return -1;  \
        return real(descriptor, length);                                                 \
    }
TRUNCATING(ftruncate, off_t)
TRUNCATING(ftruncate64, off64_t)
