// The frequency split for aarch64: four blocks at a time.
#include <arm_neon.h>

#include "frequency_loops.h"

namespace fasdiff {
namespace {

struct NeonUnit {
  using Bytes = uint8x16_t;
  using Pairs = int16x8_t;
  using Ints = int32x4_t;
  using Floats = float32x4_t;

  static constexpr int kBlocks = 4;
  static constexpr bool kWholeLines = false;
  static constexpr bool kStreams = false;

  static void LoadPixels(const uint8_t* at, Bytes* red, Bytes* green, Bytes* blue) {
    const uint8x16x3_t v = vld3q_u8(at);
    *red = v.val[0];
    *green = v.val[1];
    *blue = v.val[2];
  }

  static int16x8_t Even(Bytes v) {
    return vreinterpretq_s16_u16(vandq_u16(vreinterpretq_u16_u8(v), vdupq_n_u16(255)));
  }
  static int16x8_t Odd(Bytes v) {
    return vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_u8(v), 8));
  }
  static Pairs SumPairs(Bytes v) { return vreinterpretq_s16_u16(vpaddlq_u8(v)); }
  static Pairs DiffPairs(Bytes v) { return vsubq_s16(Even(v), Odd(v)); }
  static Pairs Plus(Pairs a, Pairs b) { return vaddq_s16(a, b); }
  static Pairs Minus(Pairs a, Pairs b) { return vsubq_s16(a, b); }
  static Pairs LoadPairs(const int16_t* at) { return vld1q_s16(at); }
  static void StorePairs(Pairs v, int16_t* at) { vst1q_s16(at, v); }

  static Ints First(Pairs v) { return vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s16(v), 16), 16); }
  static Ints Second(Pairs v) { return vshrq_n_s32(vreinterpretq_s32_s16(v), 16); }
  static Ints Sum(Pairs v) { return vpaddlq_s16(v); }
  static Ints Diff(Pairs v) { return vsubq_s32(First(v), Second(v)); }
  static Ints Offset(Ints v, int offset) { return vaddq_s32(v, vdupq_n_s32(offset)); }

  static Floats Times(Ints v, float factor) { return vmulq_n_f32(vcvtq_f32_s32(v), factor); }
  static Floats Splat(float v) { return vdupq_n_f32(v); }
  static Floats Scale(Floats v, float factor) { return vmulq_n_f32(v, factor); }
  static Floats Add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats Sub(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats SubTwice(Floats a, Floats b) { return Sub(a, Add(b, b)); }
  static Floats Load(const float* at) { return vld1q_f32(at); }
  static void Store(Floats v, float* at) { vst1q_f32(at, v); }

  // Rounded half to even, to int16 without wrapping. The conversion saturates; NaN becomes 0.
  static int16x4_t Round(Floats v) { return vqmovn_s32(vcvtnq_s32_f32(v)); }

  struct Columns {
    int16x4x2_t pairs[3];  // By colour: both columns of two blocks, then of the other two.
  };

  struct Lowest {};  // Bounds every pixel.

  // pixels is [column][colour].
  static Columns PackColumns(const Floats pixels[2][3]) {
    Columns columns;
    for (int c = 0; c < 3; ++c) {
      columns.pairs[c] = vzip_s16(Round(pixels[0][c]), Round(pixels[1][c]));
    }
    return columns;
  }

  // One colour of the four pixels of each block, as bytes in the order of the pixels.
  static Bytes Interleave(int16x4x2_t ab, int16x4x2_t cd) {
    const int32x2x2_t first =
        vzip_s32(vreinterpret_s32_s16(ab.val[0]), vreinterpret_s32_s16(cd.val[0]));
    const int32x2x2_t second =
        vzip_s32(vreinterpret_s32_s16(ab.val[1]), vreinterpret_s32_s16(cd.val[1]));
    const int16x8_t low = vreinterpretq_s16_s32(vcombine_s32(first.val[0], first.val[1]));
    const int16x8_t high = vreinterpretq_s16_s32(vcombine_s32(second.val[0], second.val[1]));
    return vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
  }

  // Writes 48 bytes.
  static void StoreColumns(const Columns columns[2], uint8_t* to) {
    vst3q_u8(to, uint8x16x3_t{{Interleave(columns[0].pairs[0], columns[1].pairs[0]),
                               Interleave(columns[0].pairs[1], columns[1].pairs[1]),
                               Interleave(columns[0].pairs[2], columns[1].pairs[2])}});
  }
};

}  // namespace

const FrequencyKernel kFrequencyNeon = {"neon", FrequencyLoops<NeonUnit>::Split,
                                        FrequencyLoops<NeonUnit>::Merge};

}  // namespace fasdiff
