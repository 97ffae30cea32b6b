/* What a hostile build tries; each attempt answers with one of three outcomes and why. */
#ifndef ATTEMPTS_H
#define ATTEMPTS_H

#include <stddef.h>

enum outcome { REFUSED, GOT_THROUGH, UNCLEAR };

enum { WHY = 240 };

/* `try` runs in a process of its own and writes its reason (at most WHY bytes) to `why`. */
struct attempt {
    const char *name;
    enum outcome (*try)(char *why);
};

/* Each table ends with an attempt that has no name. */
extern const struct attempt network_attempts[];
extern const struct attempt root_attempts[];
extern const struct attempt host_attempts[];
extern const struct attempt process_attempts[];
extern const struct attempt exhaust_attempts[];

/* Prints without end, as far as it is let; returns only when it was let too far. */
int flood(void);

/* Answers with a reason of one's own. */
enum outcome refused(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum outcome got_through(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The answer of a call that returns a negative number where it is refused. */
enum outcome by_result(char *why, long result);

/* The first of `paths` (up to a NULL) that can be opened gets through; else errno's reason. */
enum outcome open_any(char *why, const char *const *paths, int flags);

/* The first of `paths` (up to a NULL) that gives a byte gets through. */
enum outcome read_any(char *why, const char *const *paths);

#endif
