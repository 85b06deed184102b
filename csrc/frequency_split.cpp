#include "frequency_split.h"

#include "frequency_kernel.h"

namespace fasdiff {
namespace {

Status CheckImage(int height, int width) {
  if (height < 1 || width < 1) return Status::kEmptyImage;
  if (height > kMaxImageSide || width > kMaxImageSide) return Status::kImageTooLarge;
  return Status::kOk;
}

const FrequencyKernel* KernelOf(CpuPath path) {
  switch (path) {
#if FASDIFF_SIMD_X86
    case CpuPath::kAvx2:
    case CpuPath::kAvxVnni:
      return &kFrequencyAvx2;
    case CpuPath::kAvx512Vnni:
      // The first processors with VNNI have no VBMI.
      return __builtin_cpu_supports("avx512vbmi") ? &kFrequencyAvx512 : &kFrequencyAvx2;
#elif FASDIFF_SIMD_ARM
    case CpuPath::kNeon:
    case CpuPath::kNeonDotprod:
      return &kFrequencyNeon;
#endif
    default:
      return &kFrequencyScalar;
  }
}

}  // namespace

const char* FrequencyUnitName(CpuPath path) { return KernelOf(path)->name; }

Status SplitBands(const uint8_t* image, int height, int width, float* bands) {
  Status status = CheckImage(height, width);
  CpuPath path;
  if (status == Status::kOk) status = ChosenCpuPath(&path);
  if (status != Status::kOk) return status;
  KernelOf(path)->split(image, height, width, BandSide(height), BandSide(width), bands);
  return Status::kOk;
}

Status MergeBands(const float* bands, ptrdiff_t plane, int band_height, int band_width, int height,
                  int width, uint8_t* image) {
  Status status = CheckImage(height, width);
  CpuPath path;
  if (status == Status::kOk) status = ChosenCpuPath(&path);
  if (status != Status::kOk) return status;
  if (band_height != BandSide(height) || band_width != BandSide(width) ||
      plane < ptrdiff_t{band_height} * band_width) {
    return Status::kBadBandShape;
  }
  KernelOf(path)->merge(bands, plane, band_height, band_width, height, width, image);
  return Status::kOk;
}

}  // namespace fasdiff
