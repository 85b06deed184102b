// A carry-propagating range coder, in integers only.
//
// State: `low` in [0, 2^48) and `range` in (2^40, 2^48]. The message is the number
// 0.b0 b1 b2 ... in base 256, where b0 is the first byte of the payload; [low, low + range) is the
// part of the unit interval still open, seen through a 48-bit window that moves down eight bits
// with every byte shifted out.
//
//   encode [start, start + frequency) of 65536:  r = range >> 16
//                                                low += r * start;  range = r * frequency
//   a low of 2^48 or more carries one into the bytes already written, at the latest when the next
//   one is shifted out (low + range only ever falls until then, so that low stays below 2^49);
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
#include <cstring>
#include <vector>

#include "inline.h"
#include "status.h"

namespace fasdiff {

constexpr int kCdfBits = 16;
constexpr uint32_t kCdfTotal = 1u << kCdfBits;
constexpr int kWindowBytes = 6;
constexpr uint64_t kWindow = uint64_t{1} << (8 * kWindowBytes);
constexpr int kTopShift = 8 * (kWindowBytes - 1);
constexpr uint64_t kMinRange = uint64_t{1} << kTopShift;
constexpr size_t kMaxDropped = 2;
constexpr int kCdfPadding = 7;  // What Find reads beyond a table.

// A range above it is taken as it is, at or below it goes through the shift, which changes nothing
// where no byte is complete. The first is for symbols that seldom complete one: a branch foretells
// them. Of others it would not, and all of them go through.
constexpr uint64_t kSeldomShifts = kMinRange;
constexpr uint64_t kOftenShifts = ~uint64_t{0};

// The intervals [cdf[i], cdf[i + 1]) of 65536 that a message is read by.
struct Intervals {
  int32_t count = 0;          // At most 1025.
  int32_t likely = -1;        // One that is worth looking at first, or -1;
  uint32_t likely_start = 0;  // its interval, which is empty in that case.
  uint32_t likely_frequency = 0;
  uint64_t shifts = kOftenShifts;  // Or kSeldomShifts.
  std::vector<uint32_t> cdf;  // 0, strictly increasing up to cdf[count] = 65536; kCdfPadding more.
  std::vector<uint16_t> first;  // [256]: the interval that holds 256 times the index.
};

// Eight for each byte to shift out, at most three, so that a range in [2^24, 2^48] is above 2^40.
inline int ShiftBits(uint64_t range) { return (__builtin_clzll(range - 1) - 16) & ~7; }

// Writes the four bytes at the top of the window.
inline void StoreTop(uint64_t low, uint8_t* to) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  const uint32_t bytes = __builtin_bswap32(static_cast<uint32_t>(low >> (kTopShift - 24)));
  std::memcpy(to, &bytes, sizeof(bytes));
#else
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(low >> (kTopShift - 8 * i));
#endif
}

class RangeEncoder {
 public:
  // Where the encoder stands, for a loop to keep in registers. It can as long as nobody else knows
  // the address: a byte that is shifted out could otherwise be part of it.
  struct State {
    uint64_t low, range;
    uint8_t* to;   // Where the next byte goes.
    uint8_t* end;  // Of the room for more.
  };

  State Open() { return {low_, range_, bytes_.data() + size_, bytes_.data() + bytes_.size()}; }
  void Close(const State& state) {
    low_ = state.low;
    range_ = state.range;
    size_ = static_cast<size_t>(state.to - bytes_.data());
  }

  // Narrows to [start, start + frequency) of 65536; between Open and Close. `shifts` is a guess for
  // speed, kSeldomShifts or kOftenShifts.
  // REQUIRES: frequency >= 1, start + frequency <= 65536.
  FASDIFF_INLINE State Narrow(State state, uint32_t start, uint32_t frequency, uint64_t shifts) {
    const uint64_t unit = state.range >> kCdfBits;
    state.low += unit * start;
    state.range = unit * frequency;
    if (state.range > shifts) return state;
    if (state.low >= kWindow) {
      state.low -= kWindow;
      Carry(state.to);
    }
    // Shifts whole bytes out until the range is above 2^40. No branch depends on how many: four are
    // stored, and those that do not count yet are written over.
    if (state.end - state.to < 4) state = Grow(state);
    StoreTop(state.low, state.to);
    const int bits = ShiftBits(state.range);
    state.to += bits / 8;
    state.low = (state.low << bits) & (kWindow - 1);
    state.range <<= bits;
    return state;
  }

  // The same for a single symbol.
  void Encode(uint32_t start, uint32_t frequency, uint64_t shifts) {
    Close(Narrow(Open(), start, frequency, shifts));
  }

  // One equiprobable bit: 0 is [0, 32768), 1 is [32768, 65536).
  void EncodeBit(uint32_t bit) { Encode(bit << (kCdfBits - 1), kCdfTotal / 2, kSeldomShifts); }

  // Ends the message and moves its bytes to *payload. The encoder is spent afterwards.
  void Finish(std::vector<uint8_t>* payload);

 private:
  void Carry(uint8_t* to);
  State Grow(State state);

  uint64_t low_ = 0;  // < 2^49.
  uint64_t range_ = kWindow;
  std::vector<uint8_t> bytes_;  // What was shifted out, and room for more.
  size_t size_ = 0;             // Bytes shifted out.
};

class RangeDecoder {
 public:
  // Reads data[0, size), which must outlive the decoder. With `only_certain`, a symbol that the
  // missing bytes of a cut payload could still change gives kStreamTruncated at once.
  RangeDecoder(const uint8_t* data, size_t size, bool only_certain);

  // Where the decoder stands, as in RangeEncoder.
  struct State {
    uint64_t code;  // The message minus low, in the window; < range.
    uint64_t range;
    size_t read;  // Bytes taken into the window, those past the end included.
  };

  State Open() const { return state_; }
  void Close(const State& state) { state_ = state; }

  // Finds which of the intervals the message points into, and removes it; between Open and Close.
  // That is the one with unit * cdf[i] <= code < unit * cdf[i + 1].
  // kStreamInvalidCode where no encoder points, kStreamTruncated when the payload does not reach
  // that far.
  FASDIFF_INLINE Status Find(const Intervals& table, State* state, int32_t* index) const {
    const uint64_t unit = state->range >> kCdfBits;
    if (state->code - unit * table.likely_start < unit * table.likely_frequency) {
      *index = table.likely;
      return Consume(unit, table.likely_start, table.likely_frequency, kSeldomShifts, state);
    }
    if (state->code >= unit << kCdfBits) return Status::kStreamInvalidCode;
    const uint32_t target = static_cast<uint32_t>(state->code / unit);
    const uint32_t* cdf = table.cdf.data();
    // From the first interval that it could be, seven at a time; few of them are ever further.
    int32_t i = table.count > 8 ? table.first[target >> 8] : 0;
    for (int32_t more = 7; more == 7; i += more) {
      const auto past = [&](int k) { return cdf[i + k] <= target ? 1 : 0; };
      more = ((past(1) + past(2)) + (past(3) + past(4))) + ((past(5) + past(6)) + past(7));
    }
    *index = i;
    return Consume(unit, cdf[i], cdf[i + 1] - cdf[i], table.shifts, state);
  }

  // One equiprobable bit. Statuses as Find.
  Status DecodeBit(uint32_t* bit);

  // After the last symbol: kStreamTrailingBytes if the payload is longer than any encoder makes it.
  Status Finish() const;

 private:
  // Removes the interval [start, start + frequency), which holds the code.
  FASDIFF_INLINE Status Consume(uint64_t unit, uint32_t start, uint32_t frequency, uint64_t shifts,
                                State* state) const {
    state->code -= unit * start;
    state->range = unit * frequency;
    if (only_certain_ && !IsCertain(*state)) return Status::kStreamTruncated;
    if (state->range > shifts) return Status::kOk;
    const int bits = ShiftBits(state->range);
    if (state->read + 3 <= size_) {
      const uint8_t* at = data_ + state->read;
      const uint64_t next = (uint64_t{at[0]} << 16) | (uint64_t{at[1]} << 8) | at[2];
      state->code = (state->code << bits) | (next >> (24 - bits));
      state->read += static_cast<size_t>(bits) / 8;
    } else {
      for (int i = 0; i < bits; i += 8) TakeByte(state);
    }
    state->range <<= bits;
    if (state->read > size_ + kWindowBytes + kMaxDropped) return Status::kStreamTruncated;
    return Status::kOk;
  }

  void TakeByte(State* state) const {
    state->code = (state->code << 8) | (state->read < size_ ? data_[state->read] : 0);
    ++state->read;
  }

  // Whether the interval holds whatever the missing bytes could make of the code.
  bool IsCertain(State state) const;

  const uint8_t* data_;
  size_t size_;
  bool only_certain_;
  State state_ = {0, kWindow, 0};
};

}  // namespace fasdiff

#endif  // FASDIFF_CSRC_RANGE_CODER_H_
