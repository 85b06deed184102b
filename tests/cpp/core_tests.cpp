// The core by itself, with nothing but the standard library: round trips, limits, bad arguments.
// Equality with an independent implementation is tested from Python (tests/reference.py).

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "bitstream_header.h"
#include "cdf_table.h"
#include "check.h"
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
  CHECK(table.cdf.front() == 0 && table.cdf.back() == kCdfTotal);
  for (size_t i = 0; i + 1 < table.cdf.size(); ++i) CHECK(table.cdf[i] < table.cdf[i + 1]);
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
    encoder.Encode(1, 65535);
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

void TestConvolution() {
  Random random(2);
  for (int trial = 0; trial < 200; ++trial) {
    const int cin = random.Int(1, 40), cout = random.Int(1, 11), k = random.Int(0, 1) * 2 + 1;
    const int shift = random.Int(1, 24), height = random.Int(1, 7), width = random.Int(1, 7);
    const int lo = random.Int(-2000, 100), hi = random.Int(lo, 2000);
    std::vector<int8_t> weight(static_cast<size_t>(cin * cout * k * k));
    for (int8_t& w : weight) w = static_cast<int8_t>(random.Int(-128, 127));
    std::vector<int32_t> bias(static_cast<size_t>(cout));
    for (int32_t& b : bias) b = random.Int(-kBiasLimit + 1, kBiasLimit - 1);
    ConvLayer layer;
    CHECK(layer.Init(cin, cout, k, shift, lo, hi, weight.data(), bias.data()) == Status::kOk);
    const int limit = random.Int(1, 32767);
    if (layer.CheckAccumulator(limit) != Status::kOk) continue;
    const int stride = PadChannels(cin) + 8 * random.Int(0, 1);
    std::vector<int16_t> x(static_cast<size_t>(height * width * stride));
    // The channels beyond cin hold rubbish: the layer must not look at it.
    for (int16_t& v : x) v = static_cast<int16_t>(random.Int(-limit, limit));
    for (const Half half : {Half::kEven, Half::kOdd, Half::kAll}) {
      const int16_t untouched = 12345;
      std::vector<int16_t> out(static_cast<size_t>(height * width * cout), untouched);
      std::vector<int16_t> patch;
      layer.Run(x.data(), stride, height, width, half, out.data(), cout, &patch);
      for (int i = 0; i < height; ++i) {
        for (int j = 0; j < width; ++j) {
          const bool computed = half == Half::kAll || (i + j) % 2 == static_cast<int>(half);
          for (int o = 0; o < cout; ++o) {
            const int expected = computed ? NaiveConv(weight, bias, cin, k, shift, lo, hi, x,
                                                      stride, height, width, o, i, j)
                                          : untouched;
            CHECK(out[static_cast<size_t>((i * width + j) * cout + o)] == expected);
          }
        }
      }
    }
  }
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

void TestFrequencySplit() {
  Random random(3);
  for (int trial = 0; trial < 60; ++trial) {
    const int height = random.Int(1, 40), width = random.Int(1, 40);
    std::vector<uint8_t> image(static_cast<size_t>(height * width * 3));
    for (uint8_t& v : image) v = random.Byte();
    const int band_height = BandSide(height), band_width = BandSide(width);
    std::vector<float> bands(static_cast<size_t>(kNumBands * band_height * band_width));
    CHECK(SplitBands(image.data(), height, width, bands.data()) == Status::kOk);
    std::vector<uint8_t> merged(image.size());
    CHECK(MergeBands(bands.data(), band_height, band_width, height, width, merged.data()) ==
          Status::kOk);
    CHECK(merged == image);
    CHECK(MergeBands(bands.data(), band_height, band_width, height + 16, width, merged.data()) ==
          Status::kBadBandShape);
    // Any bit pattern is a float that merge must take.
    for (float& v : bands) {
      const float odd[] = {
          std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(),
          std::numeric_limits<float>::denorm_min()};
      if (random.Int(0, 3) == 0) v = odd[random.Index(5)];
    }
    CHECK(MergeBands(bands.data(), band_height, band_width, height, width, merged.data()) ==
          Status::kOk);
  }
  uint8_t pixel[3] = {0, 0, 0};
  float band[kNumBands * 16];
  CHECK(SplitBands(pixel, 0, 1, band) == Status::kEmptyImage);
  CHECK(SplitBands(pixel, 1, 0, band) == Status::kEmptyImage);
  CHECK(SplitBands(pixel, 1, kMaxImageSide + 1, band) == Status::kImageTooLarge);
  CHECK(MergeBands(band, 4, 4, 0, 1, pixel) == Status::kEmptyImage);
  CHECK(MergeBands(band, 4, 4, 1, kMaxImageSide + 1, pixel) == Status::kImageTooLarge);
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
  // 256 x 320 pixels, quality 128, scale 1, model 0x1234, empty payload.
  std::vector<uint8_t> file = {0xFA, 0x14, 0x12, 0x34, 0x0F, 0xF1, 0x3F, 0x80};
  const auto seal = [&] {
    file.resize(8);
    const uint32_t crc = Crc32(file.data(), 8, 0);
    for (int shift = 24; shift >= 0; shift -= 8) file.push_back(static_cast<uint8_t>(crc >> shift));
  };
  FileHeader header;
  const auto parse = [&] { return ParseFileHeader(file.data(), file.size(), &header); };
  seal();
  CHECK(parse() == Status::kOk);
  CHECK(header.scale == 1 && header.model_id == 0x1234 && header.quality == 128);
  CHECK(header.width == 256 && header.height == 320);
  CHECK(header.latent_size().hy == 10 && header.latent_size().wy == 8);
  for (size_t i = 0; i < file.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      file[i] = static_cast<uint8_t>(file[i] ^ (1 << bit));
      CHECK(parse() != Status::kOk);
      file[i] = static_cast<uint8_t>(file[i] ^ (1 << bit));
    }
  }
  for (size_t size = 0; size < file.size(); ++size) {
    const Status status = ParseFileHeader(file.data(), size, &header);
    CHECK(status == Status::kHeaderTooShort);
  }
  file[7] = 253;
  seal();
  CHECK(parse() == Status::kHeaderBadQuality);
  file[7] = 252;
  file[4] = file[5] = file[6] = 0xFF;
  seal();
  CHECK(parse() == Status::kOk);  // 4096 x 4096 at half size.
  file[1] = 0x10;
  seal();
  CHECK(parse() == Status::kHeaderTooManyPixels);
  file[1] = 0x20;
  seal();
  CHECK(parse() == Status::kHeaderBadVersion);
  file[0] = 0xFB;
  seal();
  CHECK(parse() == Status::kHeaderBadMagic);
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
  TestEmptyMessage();
  TestEscapeLimit();
  TestConvolution();
  TestLayerLimits();
  TestRoundShift();
  TestFrequencySplit();
  TestNoise();
  TestHeader();
  TestStatuses();
  return Finish("core_tests");
}
