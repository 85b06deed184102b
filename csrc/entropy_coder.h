// Latents <-> payload under an EntropyModel. Integers only: the same bytes on every device.
//
// Order in the one range-coded stream: the components of s; z in two passes; then each group of
// channels of y in its passes. A pass codes the positions of its Lattice, channel by channel in
// raster order, and is predicted by its network from what was decoded before it. (Under a model
// file of version 1, z comes in one raster scan per channel.)
//
// Latents are levels: integers in sixteenths of a quantisation step. What is coded is the distance
// from the predicted mean in whole steps, so that a level that is decoded is the mean plus a
// multiple of 16. (Under a model file of version 1 levels are whole steps.)
//
// Shapes: s [S], z [Cz, hz, wz], y [Cy, hy, wy], int32 and C-contiguous, with hz = ceil(hy / 4).
#ifndef FASDIFF_CSRC_ENTROPY_CODER_H_
#define FASDIFF_CSRC_ENTROPY_CODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cdf_table.h"
#include "entropy_model.h"
#include "status.h"

namespace fasdiff {

constexpr int kMaxLatentSide = 256;  // 4096 pixels / 16.

struct LatentSize {
  int hy = 0, wy = 0;

  int hz() const { return (hy + 3) / 4; }
  int wz() const { return (wy + 3) / 4; }
  size_t y_plane() const { return static_cast<size_t>(hy) * static_cast<size_t>(wy); }
  size_t z_plane() const { return static_cast<size_t>(hz()) * static_cast<size_t>(wz()); }
  bool valid() const { return hy >= 1 && hy <= kMaxLatentSide && wy >= 1 && wy <= kMaxLatentSide; }
};

struct LatentsView {
  const int32_t* s;
  const int32_t* z;
  const int32_t* y;
};

// Receives what is coded, in coding order: part 0 is s, 1 is z, 2 + p is pass p of y.
class ValueSink {
 public:
  virtual ~ValueSink() = default;
  virtual void Put(int part, const CdfTable& table, int32_t value) = 0;
};

// Walks the latents in coding order. The sink is called only if every level is in range.
// kBadLatentShape, kBadQuality, kSymbolOutOfRange.
Status VisitValues(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                   ValueSink* sink);

// Codes the nearest levels that have a code. Errors as VisitValues.
Status EncodeLatents(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                     std::vector<uint8_t>* payload);

// Reads the latents back into s, z and y, all of which are overwritten on success. Time and memory
// are bounded by the model and `size`, whatever the payload says.
//
// With `truncated_ok` a payload that was cut still gives kOk: what its bytes do not determine is
// filled in with the predicted mean (under a model file of version 1, s and z with the most
// probable symbol).
//
// kBadLatentShape, kBadQuality and the kStream... statuses.
Status DecodeLatents(const EntropyModel& model, const uint8_t* payload, size_t payload_size,
                     LatentSize size, int q, bool truncated_ok, int32_t* s, int32_t* z, int32_t* y);

// 1024 times the squared symbols that a bit of the residual must buy: 15 / 128, the slope of
// distortion over rate of a uniform quantiser.
inline constexpr int32_t kPrice = 120;

// A base that was coded once at the quality from which residuals are coded, for files that differ
// in their residuals alone: what an encoder needs to see what its base leaves, and then to search
// for the quality that fits a budget. `model` must outlive it. Its const functions may be called
// from several threads.
class CodedBase {
 public:
  CodedBase();
  ~CodedBase();

  // Once, first. `latents.y` has all of the model's channels; the residual's are not looked at.
  // Errors as VisitValues; kBadQuality where the model has no residual.
  Status Code(const EntropyModel& model, const LatentsView& latents, LatentSize size);

  // The nearest levels that have a code: what a decoder will have. The residual's are zero.
  const std::vector<int32_t>& s() const;
  const std::vector<int32_t>& z() const;
  const std::vector<int32_t>& y() const;
  LatentSize size() const;
  int num_residual() const;

  // The payload with levels [num_residual(), hy, wy] of a residual at quality q. `prices` [hy, wy]
  // are 1024 times the squared symbols that a bit must buy there, 0..65535: what EncodeLatents
  // gives where they are null or kPrice everywhere. kBadQuality, also where no residual is coded;
  // kSymbolOutOfRange; kPriceOutOfRange.
  Status Encode(const int32_t* residual, const int32_t* prices, int q,
                std::vector<uint8_t>* payload) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What a decoder uses for each symbol of y: base and table are [Cy, hy, wy] like y; zero where
// nothing is coded, and, without `with_residual`, in the residual, which takes most of the time.
// kBadLatentShape, kBadQuality, kSymbolOutOfRange.
Status PredictIndexes(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                      bool with_residual, int32_t* base, uint16_t* table);

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_ENTROPY_CODER_H_
