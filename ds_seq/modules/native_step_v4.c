/* native_step_kernels.h for x86-64-v4: AVX-512, 32 registers of 16 numbers. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4")
#define NAME(x) ds_seq_v4_##x
enum { GROUPS = 4 };
#define TILE 6
#include "native_step_kernels.h"
#endif
