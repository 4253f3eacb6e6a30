/* Makes syncs of files fail while a file says so: FAILING_SYNC names it, and its contents are the error's number. Loaded before the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int failing(void) {
    const char *path = getenv("FAILING_SYNC");
    char text[16] = {0};
    if (!path)
        return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 ? atoi(text) : 0;
}

#define WRAP(NAME)                                        \
    int NAME(int file) {                                  \
        int error = failing();                            \
        if (error) {                                      \
            errno = error;                                \
            return -1;                                    \
        }                                                 \
        int (*real)(int) = dlsym(RTLD_NEXT, #NAME);       \
        return real(file);                                \
    }

WRAP(fsync)
WRAP(fdatasync)
