/*
 * fault.h
 *		Places where the tests let a worker fail.  Only with make FAULTS=1, which nothing but the
 *		tests uses: an ordinary library has no trace of it.
 */
#ifndef PP_FAULT_H
#define PP_FAULT_H

#ifdef PP_FAULTS

#define PP_FAULT(point) pp_fault_point(point)

extern void pp_fault_point(const char *point);

#else

#define PP_FAULT(point) ((void) 0)

#endif

#endif /* PP_FAULT_H */
