#include "range_coder.h"

#include <utility>

namespace fasdiff {

void RangeEncoder::Carry(uint8_t* to) {
  // The message stays below one, so the carry always finds a byte below 0xFF.
  while (to > bytes_.data() && ++*--to == 0) {
  }
}

RangeEncoder::State RangeEncoder::Grow(State state) {
  Close(state);
  bytes_.resize(2 * bytes_.size() + 1024);
  return Open();
}

void RangeEncoder::Finish(std::vector<uint8_t>* payload) {
  const size_t shifted_out = size_;
  if (low_ >= kWindow) {
    low_ -= kWindow;
    Carry(bytes_.data() + size_);
  }
  const size_t min_size = shifted_out > kMaxDropped ? shifted_out - kMaxDropped : 0;
  if (low_ + range_ > kWindow) {
    Carry(bytes_.data() + size_);
    bytes_.resize(size_);
  } else {
    bytes_.resize(size_);
    // range > 2^40, so a multiple of 2^40 lies in the interval: the rest of the window is zero.
    if (low_ > 0) bytes_.push_back(static_cast<uint8_t>((low_ + kMinRange - 1) >> kTopShift));
  }
  while (bytes_.size() > min_size && bytes_.back() == 0) bytes_.pop_back();
  *payload = std::move(bytes_);
}

RangeDecoder::RangeDecoder(const uint8_t* data, size_t size, bool only_certain)
    : data_(data), size_(size), only_certain_(only_certain) {
  for (int i = 0; i < kWindowBytes; ++i) TakeByte(&state_);
}

bool RangeDecoder::IsCertain(State state) const {
  if (state.read <= size_) return true;
  const size_t missing = state.read - size_ < kWindowBytes ? state.read - size_ : kWindowBytes;
  return state.code + ((uint64_t{1} << (8 * missing)) - 1) < state.range;
}

Status RangeDecoder::DecodeBit(uint32_t* bit) {
  const uint64_t unit = state_.range >> kCdfBits;
  if (state_.code >= unit << kCdfBits) return Status::kStreamInvalidCode;
  *bit = state_.code >= unit << (kCdfBits - 1) ? 1 : 0;
  return Consume(unit, *bit << (kCdfBits - 1), kCdfTotal / 2, kSeldomShifts, &state_);
}

Status RangeDecoder::Finish() const {
  // The encoder has shifted out read - 6 bytes and writes at most one more.
  if (size_ > state_.read - kWindowBytes + 1) return Status::kStreamTrailingBytes;
  return Status::kOk;
}

}  // namespace fasdiff
