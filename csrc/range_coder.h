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

class RangeEncoder {
 public:
  // Narrows to [start, start + frequency) of 65536.
  // REQUIRES: frequency >= 1, start + frequency <= 65536.
  void Encode(uint32_t start, uint32_t frequency);

  // One equiprobable bit: 0 is [0, 32768), 1 is [32768, 65536).
  void EncodeBit(uint32_t bit) { Encode(bit << (kCdfBits - 1), kCdfTotal / 2); }

  // Ends the message and moves its bytes to *payload. The encoder is spent afterwards.
  void Finish(std::vector<uint8_t>* payload);

 private:
  void Carry();

  uint64_t low_ = 0;
  uint64_t range_ = uint64_t{1} << 48;
  std::vector<uint8_t> bytes_;  // What was shifted out, carries included.
};

class RangeDecoder {
 public:
  // Reads data[0, size), which must outlive the decoder. With `only_certain`, a symbol that the
  // missing bytes of a cut payload could still change gives kStreamTruncated at once.
  RangeDecoder(const uint8_t* data, size_t size, bool only_certain);

  // Finds where in [0, 65536) the message points. kStreamInvalidCode where no encoder points.
  Status Target(uint32_t* target);

  // Removes the interval [start, start + frequency), which must contain the last target.
  // kStreamTruncated when the payload does not reach that far.
  Status Consume(uint32_t start, uint32_t frequency);

  // One equiprobable bit.
  Status DecodeBit(uint32_t* bit);

  // After the last symbol: kStreamTrailingBytes if the payload is longer than any encoder makes it.
  Status Finish() const;

 private:
  uint64_t NextByte();

  const uint8_t* data_;
  size_t size_;
  bool only_certain_;
  size_t read_ = 0;    // Bytes taken into the window, those past the end included.
  uint64_t code_ = 0;  // The message minus low, in the window; < range_.
  uint64_t range_ = uint64_t{1} << 48;
};

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_RANGE_CODER_H_
