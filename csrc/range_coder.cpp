#include "range_coder.h"

#include <utility>

namespace fasdiff {
namespace {

constexpr int kWindowBytes = 6;
constexpr uint64_t kWindow = uint64_t{1} << (8 * kWindowBytes);
constexpr int kTopShift = 8 * (kWindowBytes - 1);
constexpr uint64_t kMinRange = uint64_t{1} << kTopShift;
constexpr size_t kMaxDropped = 2;

}  // namespace

void RangeEncoder::Carry() {
  // The message stays below one, so the carry always finds a byte below 0xFF.
  size_t i = bytes_.size();
  while (i > 0 && ++bytes_[--i] == 0) {
  }
}

void RangeEncoder::Encode(uint32_t start, uint32_t frequency) {
  const uint64_t unit = range_ >> kCdfBits;
  low_ += unit * start;
  range_ = unit * frequency;
  if (low_ >= kWindow) {
    low_ -= kWindow;
    Carry();
  }
  while (range_ <= kMinRange) {
    bytes_.push_back(static_cast<uint8_t>(low_ >> kTopShift));
    low_ = (low_ << 8) & (kWindow - 1);
    range_ <<= 8;
  }
}

void RangeEncoder::Finish(std::vector<uint8_t>* payload) {
  const size_t shifted_out = bytes_.size();
  const size_t min_size = shifted_out > kMaxDropped ? shifted_out - kMaxDropped : 0;
  if (low_ + range_ > kWindow) {
    Carry();
  } else if (low_ > 0) {
    // range > 2^40, so a multiple of 2^40 lies in the interval: the rest of the window is zero.
    bytes_.push_back(static_cast<uint8_t>((low_ + kMinRange - 1) >> kTopShift));
  }
  while (bytes_.size() > min_size && bytes_.back() == 0) bytes_.pop_back();
  *payload = std::move(bytes_);
}

RangeDecoder::RangeDecoder(const uint8_t* data, size_t size, bool only_certain)
    : data_(data), size_(size), only_certain_(only_certain) {
  for (int i = 0; i < kWindowBytes; ++i) code_ = (code_ << 8) | NextByte();
}

uint64_t RangeDecoder::NextByte() {
  const uint64_t byte = read_ < size_ ? data_[read_] : 0;
  ++read_;
  return byte;
}

Status RangeDecoder::Target(uint32_t* target) {
  const uint64_t value = code_ / (range_ >> kCdfBits);
  if (value >= kCdfTotal) return Status::kStreamInvalidCode;
  *target = static_cast<uint32_t>(value);
  return Status::kOk;
}

Status RangeDecoder::Consume(uint32_t start, uint32_t frequency) {
  const uint64_t unit = range_ >> kCdfBits;
  code_ -= unit * start;
  range_ = unit * frequency;
  if (only_certain_ && read_ > size_) {
    const size_t missing = read_ - size_ < kWindowBytes ? read_ - size_ : kWindowBytes;
    if (code_ + ((uint64_t{1} << (8 * missing)) - 1) >= range_) return Status::kStreamTruncated;
  }
  while (range_ <= kMinRange) {
    code_ = (code_ << 8) | NextByte();
    range_ <<= 8;
  }
  if (read_ > size_ + kWindowBytes + kMaxDropped) return Status::kStreamTruncated;
  return Status::kOk;
}

Status RangeDecoder::DecodeBit(uint32_t* bit) {
  uint32_t target = 0;
  const Status status = Target(&target);
  if (status != Status::kOk) return status;
  *bit = target >> (kCdfBits - 1);
  return Consume(*bit << (kCdfBits - 1), kCdfTotal / 2);
}

Status RangeDecoder::Finish() const {
  // The encoder has shifted out read_ - 6 bytes and writes at most one more.
  if (size_ > read_ - kWindowBytes + 1) return Status::kStreamTrailingBytes;
  return Status::kOk;
}

}  // namespace fasdiff
