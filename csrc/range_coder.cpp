#include "range_coder.h"

#include <utility>

namespace fasdiff {

void RangeEncoder::Carry() {
  // The message stays below one, so the carry always finds a byte below 0xFF.
  size_t i = size_;
  while (i > 0 && ++bytes_[--i] == 0) {
  }
}

void RangeEncoder::Grow() { bytes_.resize(2 * bytes_.size() + 1024); }

void RangeEncoder::Finish(std::vector<uint8_t>* payload) {
  const size_t shifted_out = size_;
  const size_t min_size = shifted_out > kMaxDropped ? shifted_out - kMaxDropped : 0;
  if (low_ + range_ > kWindow) {
    Carry();
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
  for (int i = 0; i < kWindowBytes; ++i) code_ = (code_ << 8) | NextByte();
}

bool RangeDecoder::IsCertain() const {
  if (read_ <= size_) return true;
  const size_t missing = read_ - size_ < kWindowBytes ? read_ - size_ : kWindowBytes;
  return code_ + ((uint64_t{1} << (8 * missing)) - 1) < range_;
}

Status RangeDecoder::DecodeBit(uint32_t* bit) {
  const uint64_t unit = range_ >> kCdfBits;
  if (code_ >= unit << kCdfBits) return Status::kStreamInvalidCode;
  *bit = code_ >= unit << (kCdfBits - 1) ? 1 : 0;
  return Consume(unit, *bit << (kCdfBits - 1), kCdfTotal / 2, true);
}

Status RangeDecoder::Finish() const {
  // The encoder has shifted out read_ - 6 bytes and writes at most one more.
  if (size_ > read_ - kWindowBytes + 1) return Status::kStreamTrailingBytes;
  return Status::kOk;
}

}  // namespace fasdiff
