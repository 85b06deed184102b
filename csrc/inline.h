// For what a loop is not to call.
#ifndef FASDIFF_CSRC_INLINE_H_
#define FASDIFF_CSRC_INLINE_H_

#if defined(__GNUC__)
#define FASDIFF_INLINE inline __attribute__((always_inline))
#else
#define FASDIFF_INLINE inline
#endif

#endif  // FASDIFF_CSRC_INLINE_H_
