// The frequency split without vector instructions: plain loops over the blocks of a group.
#include "frequency_loops.h"

namespace fasdiff {
namespace {

struct ScalarUnit {
  static constexpr int kBlocks = 8;
  static constexpr bool kWholeLines = false;
  static constexpr bool kStreams = false;

  template <typename T>
  struct Lanes {
    T at[kBlocks];
  };
  struct Bytes {
    uint8_t at[kBlocks][4];
  };
  struct Pairs {
    int16_t at[kBlocks][2];
  };
  using Ints = Lanes<int32_t>;
  using Floats = Lanes<float>;

  static void LoadPixels(const uint8_t* at, Bytes* red, Bytes* green, Bytes* blue) {
    for (int j = 0; j < kBlocks; ++j) {
      for (int x = 0; x < 4; ++x, at += 3) {
        red->at[j][x] = at[0];
        green->at[j][x] = at[1];
        blue->at[j][x] = at[2];
      }
    }
  }

  template <typename Pair>
  static Pairs FromBytes(const Bytes& v, const Pair& pair) {
    Pairs out;
    for (int j = 0; j < kBlocks; ++j) {
      out.at[j][0] = static_cast<int16_t>(pair(v.at[j][0], v.at[j][1]));
      out.at[j][1] = static_cast<int16_t>(pair(v.at[j][2], v.at[j][3]));
    }
    return out;
  }
  static Pairs SumPairs(const Bytes& v) {
    return FromBytes(v, [](int a, int b) { return a + b; });
  }
  static Pairs DiffPairs(const Bytes& v) {
    return FromBytes(v, [](int a, int b) { return a - b; });
  }

  static Pairs Plus(const Pairs& a, const Pairs& b) {
    Pairs out;
    for (int j = 0; j < kBlocks; ++j) {
      out.at[j][0] = static_cast<int16_t>(a.at[j][0] + b.at[j][0]);
      out.at[j][1] = static_cast<int16_t>(a.at[j][1] + b.at[j][1]);
    }
    return out;
  }
  static Pairs Minus(const Pairs& a, const Pairs& b) {
    Pairs out;
    for (int j = 0; j < kBlocks; ++j) {
      out.at[j][0] = static_cast<int16_t>(a.at[j][0] - b.at[j][0]);
      out.at[j][1] = static_cast<int16_t>(a.at[j][1] - b.at[j][1]);
    }
    return out;
  }

  static Pairs LoadPairs(const int16_t* at) {
    Pairs out;
    std::memcpy(out.at, at, sizeof(out.at));
    return out;
  }
  static void StorePairs(const Pairs& v, int16_t* at) { std::memcpy(at, v.at, sizeof(v.at)); }

  // a * first + b * second of each pair.
  static Ints Combine(const Pairs& v, int a, int b) {
    Ints out;
    for (int j = 0; j < kBlocks; ++j) out.at[j] = a * v.at[j][0] + b * v.at[j][1];
    return out;
  }
  static Ints First(const Pairs& v) { return Combine(v, 1, 0); }
  static Ints Second(const Pairs& v) { return Combine(v, 0, 1); }
  static Ints Sum(const Pairs& v) { return Combine(v, 1, 1); }
  static Ints Diff(const Pairs& v) { return Combine(v, 1, -1); }
  static Ints Offset(Ints v, int offset) {
    for (int32_t& lane : v.at) lane += offset;
    return v;
  }

  static Floats Times(const Ints& v, float factor) {
    Floats out;
    for (int j = 0; j < kBlocks; ++j) out.at[j] = static_cast<float>(v.at[j]) * factor;
    return out;
  }
  static Floats Splat(float v) {
    Floats out;
    for (float& lane : out.at) lane = v;
    return out;
  }
  static Floats Scale(Floats v, float factor) {
    for (float& lane : v.at) lane *= factor;
    return v;
  }
  static Floats Add(Floats a, const Floats& b) {
    for (int j = 0; j < kBlocks; ++j) a.at[j] += b.at[j];
    return a;
  }
  static Floats Sub(Floats a, const Floats& b) {
    for (int j = 0; j < kBlocks; ++j) a.at[j] -= b.at[j];
    return a;
  }
  static Floats SubTwice(Floats a, const Floats& b) { return Sub(a, Add(b, b)); }
  static Floats Load(const float* at) {
    Floats out;
    std::memcpy(out.at, at, sizeof(out.at));
    return out;
  }
  static void Store(const Floats& v, float* at) { std::memcpy(at, v.at, sizeof(v.at)); }

  // 0..255, half to even: adding 2^23 leaves no room for a fraction. Not a number -> 0.
  static uint8_t Round(float v) {
    constexpr float kTwo23 = 8388608.0f;
    v = v > 0.0f ? v : 0.0f;
    v = v < 255.0f ? v : 255.0f;
    return static_cast<uint8_t>(static_cast<int>((v + kTwo23) - kTwo23));
  }

  struct Columns {
    uint8_t at[kBlocks][6];
  };

  struct Lowest {};  // Bounds every pixel.

  // pixels is [column][colour].
  static Columns PackColumns(const Floats pixels[2][3]) {
    Columns out;
    for (int j = 0; j < kBlocks; ++j) {
      for (int i = 0; i < 6; ++i) out.at[j][i] = Round(pixels[i / 3][i % 3].at[j]);
    }
    return out;
  }

  // Writes 96 bytes.
  static void StoreColumns(const Columns columns[2], uint8_t* to) {
    for (int j = 0; j < kBlocks; ++j) {
      for (int pair = 0; pair < 2; ++pair, to += 6) std::memcpy(to, columns[pair].at[j], 6);
    }
  }
};

}  // namespace

const FrequencyKernel kFrequencyScalar = {"scalar", FrequencyLoops<ScalarUnit>::Split,
                                          FrequencyLoops<ScalarUnit>::Merge};

}  // namespace fasdiff
