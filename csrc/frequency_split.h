// Two-level orthonormal Haar split of an RGB image into 48 bands at a quarter of its size, and its
// inverse.
//
// Image: uint8 RGB [height, width, 3], padded on the right and at the bottom to multiples of 16 by
// half-sample symmetric reflection (..., b, a | a, b, ...), repeated for very small images.
// Pixels: p = (v - 127.5) / 127.5. Colours:
//   c0 = (R + G + B) / sqrt(3), c1 = (R - B) / sqrt(2), c2 = (R - 2 G + B) / sqrt(6).
// One level, on each 2x2 block  a b  :
//                               c d
//   ll = (a + b + c + d) / 2, hl = (a - b + c - d) / 2 (a vertical edge lights it),
//   lh = (a + b - c - d) / 2, hh = (a - b - c + d) / 2;
// the second level does the same to ll.
//
// Bands: float32 [48, H / 4, W / 4] for a padded size of H x W. Channels 0-11 are level 2, ll2 hl2
// lh2 hh2 with three colours each. Channel 12 + 12 band + 4 colour + 2 dy + dx is level 1 (bands
// hl1 lh1 hh1) at (2 i + dy, 2 j + dx).
#ifndef FASDIFF_CSRC_FREQUENCY_SPLIT_H_
#define FASDIFF_CSRC_FREQUENCY_SPLIT_H_

#include <cstddef>
#include <cstdint>

#include "cpu_dispatch.h"
#include "status.h"

namespace fasdiff {

constexpr int kNumBands = 48;
constexpr int kPadMultiple = 16;
constexpr int kMaxImageSide = 65536;

// A side of the bands for a side of the image: rounded up to a multiple of 16, divided by four.
constexpr int BandSide(int image_side) {
  return (image_side + kPadMultiple - 1) / kPadMultiple * (kPadMultiple / 4);
}

// What the functions below use when `path` is chosen: "scalar", "avx2", "avx512" or "neon".
const char* FrequencyUnitName(CpuPath path);

// image [height, width, 3] -> bands [48, BandSide(height), BandSide(width)].
// kEmptyImage, kImageTooLarge, kBadCpuPath.
Status SplitBands(const uint8_t* image, int height, int width, float* bands);

// bands [48, band_height, band_width], `plane` floats from one to the next -> image
// [height, width, 3], rounded half to even, clamped to 0..255; what is not a number becomes 0.
// Exactly inverts SplitBands. Bands whose distance is no multiple of 4 KiB do not compete for the
// same places in the cache.
// kEmptyImage, kImageTooLarge, kBadCpuPath, kBadBandShape unless the bands are BandSide(height) x
// BandSide(width) and do not overlap.
Status MergeBands(const float* bands, ptrdiff_t plane, int band_height, int band_width, int height,
                  int width, uint8_t* image);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_FREQUENCY_SPLIT_H_
