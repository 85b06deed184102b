#include "entropy_coder.h"

#include <algorithm>

namespace fasdiff {
namespace {

constexpr int kMaxActivation = 127;

struct Prediction {
  int32_t mean4 = 0;   // The mean in quarter symbols.
  uint16_t table = 0;  // Its low two bits are the quarter that is left: 4 * scale index + quarter.

  int32_t base() const { return mean4 >> 2; }
};

int16_t ClampActivation(int64_t v) {
  return static_cast<int16_t>(Clamp<int64_t>(v, -kMaxActivation, kMaxActivation));
}

bool InSymbolRange(const int32_t* symbols, size_t count) {
  return std::all_of(symbols, symbols + count,
                     [](int32_t v) { return v >= kMinSymbol && v <= kMaxSymbol; });
}

// Runs the networks in decoding order. For each pass p = 0, 1, ...: Predict(p), then At(...) for
// the positions of the pass, then Learn(p, y) with the pass's symbols in y.
class Predictor {
 public:
  Predictor(const EntropyModel& model, LatentSize size, int q)
      : model_(model),
        size_(size),
        q_(q),
        stride_(PadChannels(model.num_features + model.num_y)),
        input_(size.y_plane() * static_cast<size_t>(stride_), 0) {}

  // Features from z: the network h_s_z at z's size, up-sampled four times, the quality, h_s_y.
  void Begin(const int32_t* z) {
    const int z_stride = PadChannels(model_.num_z);
    std::vector<int16_t> a(size_.z_plane() * static_cast<size_t>(z_stride), 0);
    for (int c = 0; c < model_.num_z; ++c) {
      for (size_t at = 0; at < size_.z_plane(); ++at) {
        a[at * static_cast<size_t>(z_stride) + static_cast<size_t>(c)] =
            ClampActivation(int64_t{*z++} * (1 << model_.z_shift));
      }
    }
    const int u_channels = model_.h_s_z.cout();
    const int u_stride = PadChannels(u_channels);
    std::vector<int16_t> u(size_.z_plane() * static_cast<size_t>(u_stride), 0);
    model_.h_s_z.Run(a.data(), z_stride, size_.hz(), size_.wz(), Half::kAll, u.data(), u_stride,
                     &scratch_);
    const int v_stride = PadChannels(u_channels + 1);
    std::vector<int16_t> v(size_.y_plane() * static_cast<size_t>(v_stride), 0);
    int16_t* to = v.data();
    for (int i = 0; i < size_.hy; ++i) {
      for (int j = 0; j < size_.wy; ++j, to += v_stride) {
        const int16_t* from =
            u.data() + (static_cast<ptrdiff_t>(i >> 2) * size_.wz() + (j >> 2)) * u_stride;
        std::copy(from, from + u_channels, to);
        to[u_channels] = static_cast<int16_t>(q_ >> 1);
      }
    }
    model_.h_s_y.Run(v.data(), v_stride, size_.hy, size_.wy, Half::kAll, input_.data(), stride_,
                     &scratch_);
  }

  void Predict(int pass) {
    const IntegerNet& net = model_.passes[static_cast<size_t>(pass)];
    output_stride_ = PadChannels(net.cout());
    output_.resize(size_.y_plane() * static_cast<size_t>(output_stride_));
    net.Run(input_.data(), stride_, size_.hy, size_.wy, pass % 2 == 0 ? Half::kEven : Half::kOdd,
            output_.data(), output_stride_, &scratch_);
  }

  // What the last Predict says about channel `c` at raster position `at`.
  // `group_channel` is c minus the first channel of its group, which has `group_size` channels.
  Prediction At(int c, int group_channel, int group_size, size_t at) const {
    const int16_t* out = output_.data() + at * static_cast<size_t>(output_stride_);
    const int64_t mean = out[group_channel];
    const int32_t scale = out[group_size + group_channel];
    Prediction p;
    p.mean4 = static_cast<int32_t>(Clamp<int64_t>(
        RoundShift(mean * model_.Row(model_.gain, q_)[c], model_.mean_shift), -32768, 32767));
    const int64_t scale_index = Clamp<int64_t>(
        RoundShift(scale + model_.Row(model_.index_offset, q_)[c], model_.scale_shift), 0,
        model_.num_scales - 1);
    p.table = static_cast<uint16_t>(4 * scale_index + (p.mean4 & 3));
    return p;
  }

  // Adds one symbol to the context of later passes.
  void Learn(int c, size_t at, int32_t symbol) {
    const int64_t value = int64_t{symbol} * model_.Row(model_.step, q_)[c];
    input_[at * static_cast<size_t>(stride_) + static_cast<size_t>(model_.num_features + c)] =
        ClampActivation(RoundShift(value, model_.ctx_shift));
  }

 private:
  const EntropyModel& model_;
  const LatentSize size_;
  const int q_;
  const int stride_;
  std::vector<int16_t> input_;  // [hy, wy, stride_]: features, then the context of each channel.
  std::vector<int16_t> output_;
  int output_stride_ = 0;
  IntegerNet::Scratch scratch_;
};

// Calls visit(pass, channel, raster position, prediction) -> symbol for all of y in coding order.
// A false from *go stops it.
template <typename Visit>
Status ForEachLatent(const EntropyModel& model, LatentSize size, int q, const int32_t* z,
                     const Visit& visit) {
  Predictor predictor(model, size, q);
  predictor.Begin(z);
  int first = 0;
  for (int g = 0; g < model.num_groups; ++g) {
    const int group_size = model.group_size[g];
    for (int h = 0; h < 2; ++h) {
      const int pass = 2 * g + h;
      predictor.Predict(pass);
      for (int c = 0; c < group_size; ++c) {
        for (int i = 0; i < size.hy; ++i) {
          for (int j = (i + h) % 2; j < size.wy; j += 2) {
            const size_t at =
                static_cast<size_t>(i) * static_cast<size_t>(size.wy) + static_cast<size_t>(j);
            int32_t symbol = 0;
            const Status status =
                visit(pass, first + c, at, predictor.At(first + c, c, group_size, at), &symbol);
            if (status != Status::kOk) return status;
            predictor.Learn(first + c, at, symbol);
          }
        }
      }
    }
    first += group_size;
  }
  return Status::kOk;
}

Status CheckArguments(LatentSize size, const EntropyModel& model, int q) {
  if (!size.valid()) return Status::kBadLatentShape;
  return q >= 0 && q < model.num_q ? Status::kOk : Status::kBadQuality;
}

// Reads values until the payload of a cut stream no longer determines them.
class ValueSource {
 public:
  ValueSource(const uint8_t* payload, size_t size, bool fill_missing)
      : decoder_(payload, size, fill_missing), fill_missing_(fill_missing) {}

  // One symbol: base plus a value of `table`, or `fallback` where the payload was cut.
  Status Get(const CdfTable& table, int32_t base, int32_t fallback, int32_t* symbol) {
    if (!cut_) {
      int32_t value = 0;
      const Status status = DecodeValue(table, &decoder_, &value);
      if (status == Status::kOk) {
        *symbol = base + value;
        const bool in_range = *symbol >= kMinSymbol && *symbol <= kMaxSymbol;
        return in_range ? Status::kOk : Status::kStreamSymbolOutOfRange;
      }
      if (status != Status::kStreamTruncated || !fill_missing_) return status;
      cut_ = true;
    }
    *symbol = Clamp(fallback, kMinSymbol, kMaxSymbol);
    return Status::kOk;
  }

  Status Finish() const { return cut_ ? Status::kOk : decoder_.Finish(); }

 private:
  RangeDecoder decoder_;
  const bool fill_missing_;
  bool cut_ = false;
};

Status DecodeFrom(ValueSource* source, const EntropyModel& model, LatentSize size, int q,
                  int32_t* s, int32_t* z, int32_t* y) {
  const auto get_static = [&](const StaticCode& code, int32_t* symbol) {
    const CdfTable& table = model.tables[code.table];
    return source->Get(table, code.base, code.base + MostProbableValue(table), symbol);
  };
  Status status = Status::kOk;
  for (size_t i = 0; i < model.s_code.size(); ++i) {
    status = get_static(model.s_code[i], &s[i]);
    if (status != Status::kOk) return status;
  }
  int32_t* to = z;
  for (const StaticCode& code : model.z_code) {
    for (size_t at = 0; at < size.z_plane(); ++at) {
      status = get_static(code, to++);
      if (status != Status::kOk) return status;
    }
  }
  status = ForEachLatent(
      model, size, q, z, [&](int, int c, size_t at, const Prediction& p, int32_t* symbol) {
        const Status got = source->Get(model.tables[p.table], p.base(), (p.mean4 + 2) >> 2, symbol);
        y[static_cast<size_t>(c) * size.y_plane() + at] = *symbol;
        return got;
      });
  return status == Status::kOk ? source->Finish() : status;
}

class EncoderSink : public ValueSink {
 public:
  void Put(int, const CdfTable& table, int32_t value) override {
    EncodeValue(table, value, &encoder_);
  }
  void Finish(std::vector<uint8_t>* payload) { encoder_.Finish(payload); }

 private:
  RangeEncoder encoder_;
};

}  // namespace

Status VisitValues(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                   ValueSink* sink) {
  const Status status = CheckArguments(size, model, q);
  if (status != Status::kOk) return status;
  const size_t num_s = model.s_code.size();
  const size_t num_z = model.z_code.size() * size.z_plane();
  const size_t num_y = static_cast<size_t>(model.num_y) * size.y_plane();
  if (!InSymbolRange(latents.s, num_s) || !InSymbolRange(latents.z, num_z) ||
      !InSymbolRange(latents.y, num_y)) {
    return Status::kSymbolOutOfRange;
  }
  for (size_t i = 0; i < num_s; ++i) {
    const StaticCode& code = model.s_code[i];
    sink->Put(0, model.tables[code.table], latents.s[i] - code.base);
  }
  const int32_t* from = latents.z;
  for (const StaticCode& code : model.z_code) {
    for (size_t at = 0; at < size.z_plane(); ++at) {
      sink->Put(1, model.tables[code.table], *from++ - code.base);
    }
  }
  return ForEachLatent(model, size, q, latents.z,
                       [&](int pass, int c, size_t at, const Prediction& p, int32_t* symbol) {
                         *symbol = latents.y[static_cast<size_t>(c) * size.y_plane() + at];
                         sink->Put(2 + pass, model.tables[p.table], *symbol - p.base());
                         return Status::kOk;
                       });
}

Status EncodeLatents(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                     std::vector<uint8_t>* payload) {
  EncoderSink sink;
  const Status status = VisitValues(model, latents, size, q, &sink);
  if (status == Status::kOk) sink.Finish(payload);
  return status;
}

Status DecodeLatents(const EntropyModel& model, const uint8_t* payload, size_t payload_size,
                     LatentSize size, int q, bool truncated_ok, int32_t* s, int32_t* z,
                     int32_t* y) {
  Status status = CheckArguments(size, model, q);
  if (status != Status::kOk) return status;
  ValueSource strict(payload, payload_size, false);
  status = DecodeFrom(&strict, model, size, q, s, z, y);
  if (status == Status::kOk || !truncated_ok) return status;
  // Past a cut, a strict reader meets any error: only a second reading knows which bytes count.
  ValueSource lenient(payload, payload_size, true);
  return DecodeFrom(&lenient, model, size, q, s, z, y);
}

Status PredictIndexes(const EntropyModel& model, const int32_t* z, const int32_t* y,
                      LatentSize size, int q, int32_t* base, uint16_t* table) {
  const Status status = CheckArguments(size, model, q);
  if (status != Status::kOk) return status;
  if (!InSymbolRange(z, model.z_code.size() * size.z_plane()) ||
      !InSymbolRange(y, static_cast<size_t>(model.num_y) * size.y_plane())) {
    return Status::kSymbolOutOfRange;
  }
  return ForEachLatent(model, size, q, z,
                       [&](int, int c, size_t at, const Prediction& p, int32_t* symbol) {
                         const size_t index = static_cast<size_t>(c) * size.y_plane() + at;
                         base[index] = p.base();
                         table[index] = p.table;
                         *symbol = y[index];
                         return Status::kOk;
                       });
}

}  // namespace fasdiff
