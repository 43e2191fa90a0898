/* native_step_kernels.h for x86-64-v3: AVX2, 16 registers of 8 numbers. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v3")
#define NAME(x) ds_seq_v3_##x
enum { GROUPS = 1 };
#define TILE 6
#include "native_step_kernels.h"
#endif
