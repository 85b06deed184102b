// The core by itself, with nothing but the standard library: round trips, limits, bad arguments.
// Equality with an independent implementation is tested from Python (tests/reference.py).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bitstream_header.h"
#include "cdf_table.h"
#include "check.h"
#include "cpu_dispatch.h"
#include "files.h"
#include "frequency_split.h"
#include "integer_net.h"
#include "noise.h"
#include "random.h"
#include "range_coder.h"
#include "status.h"

namespace fasdiff {
namespace testing {
namespace {

CdfTable RandomTable(Random* random, int num_regular) {
  std::vector<uint16_t> frequencies(static_cast<size_t>(num_regular) + 1, 1);
  int left = static_cast<int>(kCdfTotal) - num_regular - 1;
  for (uint16_t& frequency : frequencies) {
    const int more = random->Int(0, left / 2);
    frequency = static_cast<uint16_t>(frequency + more);
    left -= more;
  }
  // What is left goes to the rarest, so that none exceeds 65535.
  for (size_t i = frequencies.size(); left > 0 && i > 0; --i) {
    const int room = 65535 - frequencies[i - 1];
    const int more = left < room ? left : room;
    frequencies[i - 1] = static_cast<uint16_t>(frequencies[i - 1] + more);
    left -= more;
  }
  CdfTable table;
  CHECK(MakeCdfTable(random->Int(-600, 200), num_regular, frequencies.data(), &table) ==
        Status::kOk);
  const size_t end = static_cast<size_t>(num_regular) + 1;
  CHECK(table.cdf.front() == 0 && table.cdf[end] == kCdfTotal && table.cdf.back() == kCdfTotal);
  CHECK(table.cdf.size() == end + 1 + kCdfPadding);
  for (size_t i = 0; i < end; ++i) CHECK(table.cdf[i] < table.cdf[i + 1]);
  return table;
}

void TestTables() {
  CdfTable table;
  const uint16_t good[] = {65533, 1, 2};
  CHECK(MakeCdfTable(0, 2, good, &table) == Status::kOk);
  const uint16_t zero[] = {65535, 0, 1};
  CHECK(MakeCdfTable(0, 2, zero, &table) == Status::kModelBadTable);
  const uint16_t more[] = {65533, 1, 3};
  CHECK(MakeCdfTable(0, 2, more, &table) == Status::kModelBadTableSum);
  const uint16_t less[] = {65533, 1, 1};
  CHECK(MakeCdfTable(0, 2, less, &table) == Status::kModelBadTableSum);
  CHECK(MakeCdfTable(0, 0, good, &table) == Status::kModelBadTable);
  CHECK(MakeCdfTable(0, kMaxRegularSymbols + 1, good, &table) == Status::kModelBadTable);
}

void TestRangeCoderRoundTrips() {
  Random random(1);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<CdfTable> tables;
    for (int t = 0; t < 3; ++t) tables.push_back(RandomTable(&random, random.Int(1, 40)));
    tables.push_back(RandomTable(&random, kMaxRegularSymbols));
    std::vector<size_t> which;
    std::vector<int32_t> values;
    const int length = trial < 4 ? trial : random.Int(0, 500);
    for (int i = 0; i < length; ++i) {
      which.push_back(random.Index(tables.size()));
      const CdfTable& table = tables[which.back()];
      const bool far = random.Int(0, 30) == 0;
      values.push_back(far ? random.Int(-(1 << 17) + 1, (1 << 17) - 1)
                           : table.offset + random.Int(-2, table.num_regular + 1));
    }
    RangeEncoder encoder;
    for (size_t i = 0; i < values.size(); ++i) EncodeValue(tables[which[i]], values[i], &encoder);
    std::vector<uint8_t> payload;
    encoder.Finish(&payload);
    for (const bool only_certain : {false, true}) {
      RangeDecoder decoder(payload.data(), payload.size(), only_certain);
      bool cut = false;
      for (size_t i = 0; i < values.size() && !cut; ++i) {
        int32_t value = 0;
        const Status status = DecodeValue(tables[which[i]], &decoder, &value);
        // The zeros that the encoder dropped could have been anything: the end is not certain.
        cut = only_certain && status == Status::kStreamTruncated;
        CHECK(cut || (status == Status::kOk && value == values[i]));
      }
      CHECK(cut || decoder.Finish() == Status::kOk);
    }
    payload.insert(payload.end(), 4, 0);
    RangeDecoder decoder(payload.data(), payload.size(), false);
    for (size_t i = 0; i < values.size(); ++i) {
      int32_t value = 0;
      CHECK(DecodeValue(tables[which[i]], &decoder, &value) == Status::kOk);
    }
    CHECK(decoder.Finish() == Status::kStreamTrailingBytes);
  }
}

// The search for a symbol reads a little beyond the end of a table, whatever its size.
void TestEveryTableSize() {
  for (int num_regular = 1; num_regular <= kMaxRegularSymbols; ++num_regular) {
    std::vector<uint16_t> frequencies(static_cast<size_t>(num_regular) + 1, 1);
    const int spread = 65536 / (num_regular + 1);
    for (uint16_t& frequency : frequencies) frequency = static_cast<uint16_t>(spread);
    frequencies[0] = static_cast<uint16_t>(65536 - spread * num_regular);
    CdfTable table;
    CHECK(MakeCdfTable(0, num_regular, frequencies.data(), &table) == Status::kOk);
    const int values[] = {0, num_regular - 1, num_regular / 2, num_regular / 3, num_regular};
    RangeEncoder encoder;
    for (const int value : values) EncodeValue(table, value, &encoder);
    std::vector<uint8_t> payload;
    encoder.Finish(&payload);
    RangeDecoder decoder(payload.data(), payload.size(), false);
    for (const int value : values) {
      int32_t decoded = -1;
      CHECK(DecodeValue(table, &decoder, &decoded) == Status::kOk && decoded == value);
    }
    CHECK(decoder.Finish() == Status::kOk);
  }
}

void TestEmptyMessage() {
  RangeEncoder encoder;
  std::vector<uint8_t> payload(3, 7);
  encoder.Finish(&payload);
  CHECK(payload.empty());
  const RangeDecoder decoder(nullptr, 0, false);
  CHECK(decoder.Finish() == Status::kOk);
}

void TestEscapeLimit() {
  const uint16_t frequencies[] = {1, 65535};
  CdfTable table;
  CHECK(MakeCdfTable(0, 1, frequencies, &table) == Status::kOk);
  for (const int prefix : {kMaxEscapePrefix, kMaxEscapePrefix + 1}) {
    RangeEncoder encoder;
    encoder.Encode(1, 65535, kSeldomShifts);
    for (int i = 0; i < prefix; ++i) encoder.EncodeBit(0);
    for (int i = 0; i <= prefix; ++i) encoder.EncodeBit(1);
    std::vector<uint8_t> payload;
    encoder.Finish(&payload);
    RangeDecoder decoder(payload.data(), payload.size(), false);
    int32_t value = 0;
    const Status status = DecodeValue(table, &decoder, &value);
    if (prefix == kMaxEscapePrefix) {
      // The code 2^19 - 1 is the number 2^19 - 2, an even one: above the top.
      CHECK(status == Status::kOk && value == 1 + ((1 << 18) - 1));
    } else {
      CHECK(status == Status::kStreamEscapeTooLong);
    }
  }
}

// The definition, position by position, in 64 bits.
int NaiveConv(const std::vector<int8_t>& weight, const std::vector<int32_t>& bias, int cin, int k,
              int shift, int lo, int hi, const std::vector<int16_t>& x, int stride, int height,
              int width, int o, int i, int j) {
  int64_t acc = bias[static_cast<size_t>(o)];
  for (int c = 0; c < cin; ++c) {
    for (int a = 0; a < k; ++a) {
      for (int b = 0; b < k; ++b) {
        const int row = i + a - k / 2, column = j + b - k / 2;
        if (row < 0 || row >= height || column < 0 || column >= width) continue;
        acc += int64_t{weight[static_cast<size_t>(((o * cin + c) * k + a) * k + b)]} *
               x[static_cast<size_t>((row * width + column) * stride + c)];
      }
    }
  }
  const int64_t out = RoundShift(acc, shift);
  return static_cast<int>(out < lo ? lo : (out > hi ? hi : out));
}

// Calls visit with each path that this build and machine have, set.
template <typename Visit>
void ForEachPath(const Visit& visit) {
  CpuPath chosen;
  CHECK(ChosenCpuPath(&chosen) == Status::kOk);
  for (int i = 0; i < kNumCpuPaths; ++i) {
    const CpuPath path = static_cast<CpuPath>(i);
    if (!CpuPathAvailable(path)) continue;
    CHECK(SetCpuPath(path) == Status::kOk);
    visit(path);
  }
  CHECK(SetCpuPath(chosen) == Status::kOk);
}

bool IsIn(Lattice lattice, int i, int j) {
  switch (lattice) {
    case Lattice::kEven:
      return (i + j) % 2 == 0;
    case Lattice::kOdd:
      return (i + j) % 2 == 1;
    case Lattice::kEvenEven:
      return i % 2 == 0 && j % 2 == 0;
    case Lattice::kOddOdd:
      return i % 2 == 1 && j % 2 == 1;
    case Lattice::kAll:
      break;
  }
  return true;
}

struct ConvCase {
  int cin, cout, k, shift, lo, hi, height, width, stride;
  std::vector<int8_t> weight;
  std::vector<int32_t> bias;
  std::vector<int16_t> x;
};

// Each path against the definition; positions that are not asked for stay untouched.
void CheckConvolution(const ConvCase& c) {
  std::vector<int> expected;
  for (int i = 0; i < c.height; ++i) {
    for (int j = 0; j < c.width; ++j) {
      for (int o = 0; o < c.cout; ++o) {
        expected.push_back(NaiveConv(c.weight, c.bias, c.cin, c.k, c.shift, c.lo, c.hi, c.x,
                                     c.stride, c.height, c.width, o, i, j));
      }
    }
  }
  ForEachPath([&](CpuPath) {
    ConvLayer layer;
    CHECK(layer.Init(c.cin, c.cout, c.k, c.shift, c.lo, c.hi, c.weight.data(), c.bias.data()) ==
          Status::kOk);
    CacheLines scratch;
    for (const Lattice lattice :
         {Lattice::kEven, Lattice::kOdd, Lattice::kAll, Lattice::kEvenEven, Lattice::kOddOdd}) {
      const int16_t untouched = 12345;
      std::vector<int16_t> out(expected.size(), untouched);
      layer.Run(c.x.data(), c.stride, c.height, c.width, lattice, out.data(), c.cout, &scratch);
      size_t at = 0;
      for (int i = 0; i < c.height; ++i) {
        for (int j = 0; j < c.width; ++j) {
          for (int o = 0; o < c.cout; ++o, ++at) {
            CHECK(out[at] == (IsIn(lattice, i, j) ? expected[at] : untouched));
          }
        }
      }
    }
  });
}

void TestConvolution() {
  Random random(2);
  for (int trial = 0; trial < 160; ++trial) {
    ConvCase c;
    // Every eighth is wide: more channels than a vector, a chunk or a word of the masks.
    const bool wide = trial % 8 == 0;
    c.cin = random.Int(1, wide ? 300 : 40), c.cout = random.Int(1, wide ? 100 : 11);
    c.k = random.Int(0, 1) * 2 + 1;
    c.height = random.Int(1, wide ? 3 : 7), c.width = random.Int(1, wide ? 3 : 7);
    c.shift = random.Int(1, 24);
    c.lo = random.Int(-2000, 100), c.hi = random.Int(c.lo, 2000);
    c.weight.resize(static_cast<size_t>(c.cin * c.cout * c.k * c.k));
    for (int8_t& w : c.weight) w = static_cast<int8_t>(random.Int(-128, 127));
    c.bias.resize(static_cast<size_t>(c.cout));
    for (int32_t& b : c.bias) b = random.Int(-kBiasLimit + 1, kBiasLimit - 1);
    // Around the ends of int8, or anything.
    const int limits[] = {1, 127, 128, 129, random.Int(1, 32767)};
    const int limit = limits[random.Index(5)];
    ConvLayer layer;
    CHECK(layer.Init(c.cin, c.cout, c.k, c.shift, c.lo, c.hi, c.weight.data(), c.bias.data()) ==
          Status::kOk);
    if (layer.CheckAccumulator(limit) != Status::kOk) continue;
    c.stride = PadChannels(c.cin) + 8 * random.Int(0, 1);
    c.x.resize(static_cast<size_t>(c.height * c.width * c.stride));
    const int zeros = random.Int(0, 9);  // Of ten.
    for (size_t i = 0; i < c.x.size(); ++i) {
      const bool inside = static_cast<int>(i) % c.stride < c.cin;
      // The channels beyond cin hold rubbish: the layer must not look at it.
      if (!inside) c.x[i] = static_cast<int16_t>(random.Int(-32768, 32767));
      if (inside && random.Int(0, 9) >= zeros) {
        c.x[i] = static_cast<int16_t>(random.Int(-limit, limit));
      }
    }
    CheckConvolution(c);
  }
}

// Sums as large as the limits allow, of one sign: whatever saturates in 16 bits shows here.
void TestLargestSums() {
  for (const int weight : {-128, 127}) {
    for (const int x : {-128, -127, 127, 128, -1820, 1820}) {
      ConvCase c = {2 * kMaxChannels, 17, 3, 16, -32768, 32767, 3, 3, 2 * kMaxChannels, {}, {}, {}};
      c.weight.assign(static_cast<size_t>(c.cin * c.cout * 9), static_cast<int8_t>(weight));
      c.bias.assign(static_cast<size_t>(c.cout), (weight < 0) == (x < 0) ? 500000 : -500000);
      c.x.assign(static_cast<size_t>(9 * c.cin), static_cast<int16_t>(x));
      ConvLayer layer;
      CHECK(layer.Init(c.cin, c.cout, c.k, c.shift, c.lo, c.hi, c.weight.data(), c.bias.data()) ==
            Status::kOk);
      CHECK(layer.CheckAccumulator(x < 0 ? -x : x) == Status::kOk);
      CheckConvolution(c);
    }
  }
}

void TestCpuPaths() {
  CHECK(CpuPathAvailable(CpuPath::kScalar));
  CHECK(AvailableCpuPathNames().substr(0, 6) == "scalar");
  CHECK(CpuEnvironment().empty() ||
        AvailableCpuPathNames().find(CpuEnvironment()) != std::string::npos);
  CpuPath chosen;
  CHECK(ChosenCpuPath(&chosen) == Status::kOk);
  for (int i = 0; i < kNumCpuPaths; ++i) {
    const CpuPath path = static_cast<CpuPath>(i);
    CHECK(std::string(CpuPathName(path)) != "unknown");
    CHECK((SetCpuPath(path) == Status::kOk) == CpuPathAvailable(path));
    CpuPath now;
    CHECK(ChosenCpuPath(&now) == Status::kOk && CpuPathAvailable(now));
    if (CpuPathAvailable(path)) CHECK(now == path);
  }
  CHECK(SetCpuPath(chosen) == Status::kOk);
}

void TestLayerLimits() {
  const std::vector<int8_t> weight(9 * 8, 1);
  const int32_t bias[2] = {0, kBiasLimit - 1};
  ConvLayer layer;
  const auto init = [&](int cin, int cout, int k, int shift, int lo, int hi) {
    return layer.Init(cin, cout, k, shift, lo, hi, weight.data(), bias);
  };
  CHECK(init(4, 2, 3, 1, -1, 1) == Status::kOk);
  CHECK(init(0, 2, 3, 1, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, 0, 3, 1, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, kMaxChannels + 1, 3, 1, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 2, 1, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 3, 0, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 3, 25, -1, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 3, 1, 2, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 3, 1, -32769, 1) == Status::kModelBadLayer);
  CHECK(init(4, 2, 3, 1, -1, 32768) == Status::kModelBadLayer);
  const int32_t too_large[1] = {-kBiasLimit};
  CHECK(layer.Init(1, 1, 1, 1, 0, 1, weight.data(), too_large) == Status::kModelBadBias);
  // 4 * 9 * 128 * x + 2^24 - 1 < 2^31 up to x = 462392.
  CHECK(init(4, 2, 3, 1, -7, 3) == Status::kOk);
  CHECK(layer.CheckAccumulator(462392) == Status::kOk);
  CHECK(layer.CheckAccumulator(462393) == Status::kModelAccumulatorTooWide);
  CHECK(layer.max_output() == 7);
  CHECK(init(4, 2, 3, 1, 3, 9) == Status::kOk && layer.max_output() == 9);
  CHECK(init(4, 2, 3, 1, -9, -3) == Status::kOk && layer.max_output() == 9);
  IntegerNet net;
  CHECK(net.Append(layer) == Status::kOk);
  CHECK(net.Append(layer) == Status::kModelBadLayerChain);
}

void TestRoundShift() {
  CHECK(RoundShift(5, 0) == 5 && RoundShift(-5, 0) == -5);
  CHECK(RoundShift(5, 1) == 3 && RoundShift(-5, 1) == -2);
  CHECK(RoundShift(7, 2) == 2 && RoundShift(6, 2) == 2 && RoundShift(5, 2) == 1);
  CHECK(RoundShift(-6, 2) == -1 && RoundShift(-7, 2) == -2);
}

// Bands that are large and start with a cache line are written past the caches by some paths.
void TestLargeFrequencySplit() {
  Random random(5);
  const int height = 530, width = 1011;
  std::vector<uint8_t> image(static_cast<size_t>(height * width * 3));
  for (uint8_t& v : image) v = random.Byte();
  const int band_height = BandSide(height), band_width = BandSide(width);
  const ptrdiff_t plane = ptrdiff_t{band_height} * band_width;
  const size_t size = static_cast<size_t>(kNumBands * plane);
  std::vector<float> first;
  ForEachPath([&](CpuPath path) {
    for (const size_t past : {size_t{0}, size_t{5}}) {
      std::vector<float> memory(size + 16 + past);
      void* start = memory.data();
      size_t space = memory.size() * sizeof(float);
      float* bands = static_cast<float*>(std::align(64, size * sizeof(float), start, space)) + past;
      CHECK(SplitBands(image.data(), height, width, bands) == Status::kOk);
      if (path == CpuPath::kScalar && past == 0) first.assign(bands, bands + size);
      CHECK(std::equal(first.begin(), first.end(), bands));
      std::vector<uint8_t> merged(image.size());
      CHECK(MergeBands(bands, plane, band_height, band_width, height, width, merged.data()) ==
            Status::kOk);
      CHECK(merged == image);
    }
  });
}

// Every path inverts its own split, and gives the same bits as the scalar one.
void TestFrequencySplit() {
  Random random(3);
  for (int trial = 0; trial < 60; ++trial) {
    // Some wider than a tile of any path.
    const int height = random.Int(1, 40), width = random.Int(1, trial % 6 == 0 ? 1100 : 90);
    std::vector<uint8_t> image(static_cast<size_t>(height * width * 3));
    for (uint8_t& v : image) v = trial % 5 == 0 ? (random.Int(0, 1) == 0 ? 0 : 255) : random.Byte();
    const int band_height = BandSide(height), band_width = BandSide(width);
    const ptrdiff_t plane = ptrdiff_t{band_height} * band_width, apart = plane + random.Int(1, 40);
    const size_t size = static_cast<size_t>(kNumBands * plane);
    // Any bit pattern is a float that merge must take.
    std::vector<float> odd_bands(size);
    for (float& v : odd_bands) {
      const float odd[] = {
          std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(),
          std::numeric_limits<float>::denorm_min()};
      v = static_cast<float>(random.Int(-30000, 30000)) / 10000.0f;
      if (random.Int(0, 99) == 0) v = odd[random.Index(5)];
    }
    std::vector<float> bands_apart(static_cast<size_t>(kNumBands * apart), 1e9f);
    for (int band = 0; band < kNumBands; ++band) {
      std::copy_n(odd_bands.data() + band * plane, plane, bands_apart.data() + band * apart);
    }
    std::vector<float> first_bands;
    std::vector<uint8_t> first_odd;
    ForEachPath([&](CpuPath path) {
      std::vector<float> bands(size);
      CHECK(SplitBands(image.data(), height, width, bands.data()) == Status::kOk);
      std::vector<uint8_t> merged(image.size());
      CHECK(MergeBands(bands.data(), plane, band_height, band_width, height, width,
                       merged.data()) == Status::kOk);
      CHECK(merged == image);
      CHECK(MergeBands(bands.data(), plane, band_height, band_width, height + 16, width,
                       merged.data()) == Status::kBadBandShape);
      CHECK(MergeBands(odd_bands.data(), plane, band_height, band_width, height, width,
                       merged.data()) == Status::kOk);
      if (path == CpuPath::kScalar) {
        first_bands = bands;
        first_odd = merged;
      }
      CHECK(bands == first_bands);
      CHECK(merged == first_odd);
      std::fill(merged.begin(), merged.end(), uint8_t{7});
      CHECK(MergeBands(bands_apart.data(), apart, band_height, band_width, height, width,
                       merged.data()) == Status::kOk);
      CHECK(merged == first_odd);
      CHECK(MergeBands(bands.data(), plane - 1, band_height, band_width, height, width,
                       merged.data()) == Status::kBadBandShape);
    });
  }
  uint8_t pixel[3] = {0, 0, 0};
  float band[kNumBands * 16];
  CHECK(SplitBands(pixel, 0, 1, band) == Status::kEmptyImage);
  CHECK(SplitBands(pixel, 1, 0, band) == Status::kEmptyImage);
  CHECK(SplitBands(pixel, 1, kMaxImageSide + 1, band) == Status::kImageTooLarge);
  CHECK(MergeBands(band, 16, 4, 4, 0, 1, pixel) == Status::kEmptyImage);
  CHECK(MergeBands(band, 16, 4, 4, 1, kMaxImageSide + 1, pixel) == Status::kImageTooLarge);
}

void TestNoise() {
  std::vector<float> a(5000), b(5000);
  Noise(42, a.size(), a.data());
  double sum = 0, squares = 0;
  for (const float v : a) sum += v, squares += v * v;
  CHECK(std::fabs(sum / 5000) < 0.06);
  CHECK(std::fabs(squares / 5000 - 1) < 0.08);
  std::thread other([&] { Noise(42, b.size(), b.data()); });
  other.join();
  CHECK(a == b);
  Noise(43, b.size(), b.data());
  CHECK(a != b);
  Noise(42, 0, nullptr);
}

void TestHeader() {
  const std::string check = "123456789";
  const uint8_t* text = reinterpret_cast<const uint8_t*>(check.data());
  CHECK(Crc32(text, 9, 0) == 0xCBF43926u);
  CHECK(Crc32(text + 4, 5, Crc32(text, 4, 0)) == 0xCBF43926u);
  CHECK(Crc16(text, 9, 0xFFFF) == 0x29B1);
  CHECK(Crc16(text + 4, 5, Crc16(text, 4, 0xFFFF)) == 0x29B1);

  const std::vector<uint8_t> payload = {'f', 'a', 'c', 'e'};
  FileHeader header;
  const auto parse = [&](const std::vector<uint8_t>& file) {
    return ParseFileHeader(file.data(), file.size(), &header);
  };
  for (const int version : {1, 2}) {
    for (const int flags : {0, 1, 2, 3}) {
      if (version == 1 && flags != 0) continue;
      HeaderFields fields;
      fields.version = version;
      fields.square = (flags & 2) != 0;
      fields.short_check = (flags & 1) != 0;
      fields.scale = 1;
      fields.model_id = 0x1234;
      fields.width = 256;
      fields.height = fields.square ? 256 : 320;
      fields.quality = 128;
      std::vector<uint8_t> file = MakeFile(fields, payload);
      CHECK(parse(file) == Status::kOk);
      CHECK(header.bytes == size_t{12} - (fields.square ? 2 : 0) - (fields.short_check ? 2 : 0));
      CHECK(header.version == version && header.scale == 1 && header.quality == 128);
      CHECK(header.model_id == 0x1234 && header.width == 256 && header.height == fields.height);
      CHECK(header.latent_size().hy == (fields.square ? 8 : 10) && header.latent_size().wy == 8);
      for (size_t i = 0; i < file.size(); ++i) {
        for (int bit = 0; bit < 8; ++bit) {
          file[i] = static_cast<uint8_t>(file[i] ^ (1 << bit));
          CHECK(parse(file) != Status::kOk);
          file[i] = static_cast<uint8_t>(file[i] ^ (1 << bit));
        }
      }
      CHECK(parse(file) == Status::kOk);
      const size_t header_size = header.bytes;
      for (size_t size = 0; size < header_size; ++size) {
        CHECK(ParseFileHeader(file.data(), size, &header) == Status::kHeaderTooShort);
      }
      fields.quality = 253;
      CHECK(parse(MakeFile(fields, payload)) == Status::kHeaderBadQuality);
      fields.quality = 252;
      fields.width = fields.height = 4096;
      CHECK(parse(MakeFile(fields, payload)) == Status::kOk);  // At half size.
      fields.scale = 0;
      CHECK(parse(MakeFile(fields, payload)) == Status::kHeaderTooManyPixels);
      for (const int other : {0, 3, 15}) {
        fields.version = other;
        CHECK(parse(MakeFile(fields, payload)) == Status::kHeaderBadVersion);
      }
      file[0] = 0xFB;
      CHECK(parse(file) == Status::kHeaderBadMagic);
    }
  }
  HeaderFields reserved;
  reserved.version = 1;
  reserved.short_check = true;
  CHECK(parse(MakeFile(reserved, payload)) == Status::kHeaderReservedBits);
}

void TestStatuses() {
  for (int i = 0; i <= static_cast<int>(Status::kModelAccumulatorTooWide); ++i) {
    const Status status = static_cast<Status>(i);
    CHECK(std::string(StatusMessage(status)) != "unknown status");
    CHECK(!(IsStreamError(status) && IsModelError(status)));
  }
  CHECK(IsStreamError(Status::kHeaderTooShort) && IsStreamError(Status::kStreamTruncated));
  CHECK(!IsStreamError(Status::kSymbolOutOfRange) && !IsStreamError(Status::kOk));
  CHECK(IsModelError(Status::kModelBadBias) && !IsModelError(Status::kStreamTruncated));
}

}  // namespace
}  // namespace testing
}  // namespace fasdiff

int main() {
  using namespace fasdiff::testing;
  TestTables();
  TestRangeCoderRoundTrips();
  TestEveryTableSize();
  TestEmptyMessage();
  TestEscapeLimit();
  TestCpuPaths();
  TestConvolution();
  TestLargestSums();
  TestLayerLimits();
  TestRoundShift();
  TestFrequencySplit();
  TestLargeFrequencySplit();
  TestNoise();
  TestHeader();
  TestStatuses();
  return Finish("core_tests");
}
