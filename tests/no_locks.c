/* Makes locks fail for files below NO_LOCKS_BELOW, as a file system without them does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int has_no_locks(int fd) {
    char link[64], path[4096];
    const char *prefix = getenv("NO_LOCKS_BELOW");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (prefix == NULL || length < 0) return 0;
    path[length] = 0;
    return strncmp(path, prefix, strlen(prefix)) == 0;
}

int flock(int fd, int operation) {
    int (*real)(int, int) = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    if (has_no_locks(fd)) { errno = ENOLCK; return -1; }
    return real(fd, operation);
}

static int is_lock(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

#define FCNTL(name) \
    int name(int fd, int command, ...) { \
        va_list arguments; \
        va_start(arguments, command); \
        void *argument = va_arg(arguments, void *); \
        va_end(arguments); \
        int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name); \
        if (is_lock(command) && has_no_locks(fd)) { errno = ENOLCK; return -1; } \
        return real(fd, command, argument); \
    }

FCNTL(fcntl)
FCNTL(fcntl64)
