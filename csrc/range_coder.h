// A carry-propagating range coder, in integers only.
//
// State: `low` in [0, 2^48) and `range` in (2^40, 2^48]. The message is the number
// 0.b0 b1 b2 ... in base 256, where b0 is the first byte of the payload; [low, low + range) is the
// part of the unit interval still open, seen through a 48-bit window that moves down eight bits
// with every byte shifted out.
//
//   encode [start, start + frequency) of 65536:  r = range >> 16
//                                                low += r * start;  range = r * frequency
//   a low of 2^48 or more carries one into the bytes already written;
//   while range <= 2^40: shift the top byte of low out, range <<= 8.
//
// End: of the numbers in [low, low + range), the one with the most trailing zero bytes is chosen
// (at most one more byte is written), then trailing zero bytes are dropped, but never so many that
// fewer than (bytes shifted out) - 2 are left; the reader takes zeros for what is missing. So a
// payload may be empty, and a reader that has shifted out more than size + 2 bytes (it has then
// looked more than 8 bytes past the end) knows that the payload was cut.
#ifndef FASDIFF_CSRC_RANGE_CODER_H_
#define FASDIFF_CSRC_RANGE_CODER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "status.h"

namespace fasdiff {

constexpr int kCdfBits = 16;
constexpr uint32_t kCdfTotal = 1u << kCdfBits;
constexpr int kWindowBytes = 6;
constexpr uint64_t kWindow = uint64_t{1} << (8 * kWindowBytes);
constexpr int kTopShift = 8 * (kWindowBytes - 1);
constexpr uint64_t kMinRange = uint64_t{1} << kTopShift;
constexpr size_t kMaxDropped = 2;
constexpr int kCdfPadding = 26;  // What Decode reads beyond a table of up to 1025 intervals.

// Eight for each byte to shift out, at most three, so that a range in [2^24, 2^48] is above 2^40.
inline int ShiftBits(uint64_t range) { return (__builtin_clzll(range - 1) - 16) & ~7; }

class RangeEncoder {
 public:
  // Narrows to [start, start + frequency) of 65536. `seldom_shifts` is a guess for speed: that most
  // calls will not complete a byte.
  // REQUIRES: frequency >= 1, start + frequency <= 65536.
  void Encode(uint32_t start, uint32_t frequency, bool seldom_shifts) {
    const uint64_t unit = range_ >> kCdfBits;
    low_ += unit * start;
    range_ = unit * frequency;
    if (low_ >= kWindow) {
      low_ -= kWindow;
      Carry();
    }
    if (!seldom_shifts || range_ <= kMinRange) ShiftOut();
  }

  // One equiprobable bit: 0 is [0, 32768), 1 is [32768, 65536).
  void EncodeBit(uint32_t bit) { Encode(bit << (kCdfBits - 1), kCdfTotal / 2, true); }

  // Ends the message and moves its bytes to *payload. The encoder is spent afterwards.
  void Finish(std::vector<uint8_t>* payload);

 private:
  void Carry();
  void Grow();

  // Shifts whole bytes out until the range is above 2^40. No branch depends on how many: three are
  // stored, and those that do not count yet are written over.
  void ShiftOut() {
    if (bytes_.size() - size_ < 3) Grow();
    const int bits = ShiftBits(range_);
    for (int i = 0; i < 3; ++i) {
      bytes_[size_ + static_cast<size_t>(i)] = static_cast<uint8_t>(low_ >> (kTopShift - 8 * i));
    }
    size_ += static_cast<size_t>(bits) / 8;
    low_ = (low_ << bits) & (kWindow - 1);
    range_ <<= bits;
  }

  uint64_t low_ = 0;
  uint64_t range_ = kWindow;
  std::vector<uint8_t> bytes_;  // What was shifted out, carries included, and room for more.
  size_t size_ = 0;             // Bytes shifted out.
};

class RangeDecoder {
 public:
  // Reads data[0, size), which must outlive the decoder. With `only_certain`, a symbol that the
  // missing bytes of a cut payload could still change gives kStreamTruncated at once.
  RangeDecoder(const uint8_t* data, size_t size, bool only_certain);

  // Finds which of the `count` intervals [cdf[i], cdf[i + 1]) of 65536 the message points into, and
  // removes it. That is the one with unit * cdf[i] <= code < unit * cdf[i + 1]; a division of the
  // code by the unit is not needed. `likely`, if not negative, is looked at first.
  // kStreamInvalidCode where no encoder points, kStreamTruncated when the payload does not reach
  // that far.
  // REQUIRES: cdf[0] = 0, strictly increasing up to cdf[count] = 65536, and kCdfPadding further
  // entries of 65536; count <= 1025; likely < count.
  Status Decode(const uint32_t* cdf, int32_t count, int32_t likely, int32_t* index) {
    const uint64_t unit = range_ >> kCdfBits;
    if (likely >= 0 && code_ >= unit * cdf[likely] && code_ < unit * cdf[likely + 1]) {
      *index = likely;
      return Consume(unit, cdf[likely], cdf[likely + 1] - cdf[likely], true);
    }
    if (code_ >= unit << kCdfBits) return Status::kStreamInvalidCode;
    // Of eight parts, the last that does not start beyond the code; the seven comparisons do not
    // wait for each other. Parts are rounded up, so the last may lie beyond the table's end.
    int32_t i = 0;
    for (int32_t left = count; left > 1;) {
      const int32_t part = (left + 7) / 8;
      int32_t parts = 0;
      for (int32_t k = 1; k < 8; ++k) parts += unit * cdf[i + k * part] <= code_ ? 1 : 0;
      i += parts * part;
      left = part;
    }
    *index = i;
    return Consume(unit, cdf[i], cdf[i + 1] - cdf[i], likely >= 0);
  }

  // One equiprobable bit. Statuses as Decode.
  Status DecodeBit(uint32_t* bit);

  // After the last symbol: kStreamTrailingBytes if the payload is longer than any encoder makes it.
  Status Finish() const;

 private:
  // Removes the interval [start, start + frequency), which holds the code. `seldom_shifts` as in
  // RangeEncoder::Encode.
  Status Consume(uint64_t unit, uint32_t start, uint32_t frequency, bool seldom_shifts) {
    code_ -= unit * start;
    range_ = unit * frequency;
    if (only_certain_ && !IsCertain()) return Status::kStreamTruncated;
    if (seldom_shifts && range_ > kMinRange) return Status::kOk;
    const int bits = ShiftBits(range_);
    if (read_ + 3 <= size_) {
      const uint8_t* at = data_ + read_;
      const uint64_t next = (uint64_t{at[0]} << 16) | (uint64_t{at[1]} << 8) | at[2];
      code_ = (code_ << bits) | (next >> (24 - bits));
      read_ += static_cast<size_t>(bits) / 8;
    } else {
      for (int i = 0; i < bits; i += 8) code_ = (code_ << 8) | NextByte();
    }
    range_ <<= bits;
    if (read_ > size_ + kWindowBytes + kMaxDropped) return Status::kStreamTruncated;
    return Status::kOk;
  }

  uint64_t NextByte() {
    const uint64_t byte = read_ < size_ ? data_[read_] : 0;
    ++read_;
    return byte;
  }

  // Whether the interval holds whatever the missing bytes could make of the code.
  bool IsCertain() const;

  const uint8_t* data_;
  size_t size_;
  bool only_certain_;
  size_t read_ = 0;    // Bytes taken into the window, those past the end included.
  uint64_t code_ = 0;  // The message minus low, in the window; < range_.
  uint64_t range_ = kWindow;
};

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_RANGE_CODER_H_
