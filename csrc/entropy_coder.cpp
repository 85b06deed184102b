#include "entropy_coder.h"

#include <algorithm>

namespace fasdiff {
namespace {

constexpr int kMaxActivation = 127;
constexpr int32_t kMaxPrice = 65535;

// Levels that exist: those of symbols of 16 bits.
struct LevelRange {
  explicit LevelRange(const EntropyModel& model)
      : unit_bits(model.unit_bits()),
        lowest(kMinSymbol * (1 << unit_bits)),
        highest(kMaxSymbol * (1 << unit_bits)) {}

  bool Contains(int32_t level) const { return level >= lowest && level <= highest; }

  int unit_bits;
  int32_t lowest, highest;
};

// level = base + (a value of the table << unit_bits); `likely` stands in for the level where a cut
// stream says nothing.
struct Prediction {
  int32_t base = 0;
  int32_t likely = 0;
  uint16_t table = 0;
  bool priced = false;  // Whether an encoder weighs the bits of a value against its error.
};

Prediction Predict(const EntropyModel& model, const StaticCode& code) {
  Prediction p;
  p.base = code.base;
  p.table = code.table;
  p.likely = Clamp(code.base + MostProbableValue(model.tables[code.table]), kMinSymbol, kMaxSymbol);
  return p;
}

// From a network's mean and scale of channel c.
Prediction Predict(const EntropyModel& model, const Quantiser& quantiser, int q, int c,
                   int64_t mean, int64_t scale) {
  const size_t at = quantiser.At(q, c);
  const int64_t mean_level = RoundShift(mean * quantiser.gain[at], model.mean_shift);
  const int64_t scale_index = Clamp<int64_t>(
      RoundShift(scale + quantiser.index_offset[at], model.scale_shift), 0, model.num_scales - 1);
  Prediction p;
  if (model.version == 1) {  // A table for each quarter of a symbol that the mean may be off.
    const int32_t mean4 = static_cast<int32_t>(Clamp<int64_t>(mean_level, -32768, 32767));
    p.base = mean4 >> 2;
    p.likely = (mean4 + 2) >> 2;
    p.table = static_cast<uint16_t>(4 * scale_index + (mean4 & 3));
  } else {
    const LevelRange range(model);
    p.base = static_cast<int32_t>(Clamp<int64_t>(mean_level, range.lowest, range.highest));
    p.likely = p.base;
    p.table = static_cast<uint16_t>(scale_index);
  }
  return p;
}

int16_t ClampActivation(int64_t v) {
  return static_cast<int16_t>(Clamp<int64_t>(v, -kMaxActivation, kMaxActivation));
}

bool InRange(const LevelRange& range, const int32_t* levels, size_t count) {
  return std::all_of(levels, levels + count, [&](int32_t v) { return range.Contains(v); });
}

// Channels of integers, channel-innermost, zero until they are set.
class Map {
 public:
  Map(int height, int width, int channels)
      : height_(height),
        width_(width),
        stride_(PadChannels(channels)),
        values_(
            static_cast<size_t>(height) * static_cast<size_t>(width) * static_cast<size_t>(stride_),
            0) {}

  int16_t* At(size_t position) { return values_.data() + position * static_cast<size_t>(stride_); }
  const int16_t* At(size_t position) const {
    return values_.data() + position * static_cast<size_t>(stride_);
  }

  void Run(const IntegerNet& net, Lattice lattice, Map* out, IntegerNet::Scratch* scratch) const {
    net.Run(values_.data(), stride_, height_, width_, lattice, out->values_.data(), out->stride_,
            scratch);
  }

 private:
  int height_, width_, stride_;
  std::vector<int16_t> values_;
};

// Runs the networks in decoding order. SAt and LearnS for each component of s; BeginZ, then z pass
// by pass; BeginY, then y pass by pass. For each pass: PredictZ or PredictY, then ZAt or YAt for
// its positions, each followed by LearnZ or LearnY with the level.
class Predictor {
 public:
  Predictor(const EntropyModel& model, LatentSize size, int q)
      : model_(model),
        size_(size),
        q_(q),
        planes_(model.version == 1 ? 1 : kNumPlanes),
        semantics_(model.version == 1 ? 0 : model.num_s),
        s_context_(static_cast<size_t>(semantics_), 0),
        z_input_(size.hz(), size.wz(), planes_ + semantics_ + model.num_z),
        y_input_(size.hy, size.wy, model.num_features + model.num_y),
        z_output_(size.hz(), size.wz(), 2 * model.num_z),
        y_output_(size.hy, size.wy, 2 * LargestGroup(model)) {}

  // Another quality for what is to come. REQUIRES: `q` and the last have the same base quality, or
  // nothing was predicted yet.
  void SetQuality(int q) { q_ = q; }

  Prediction SAt(int c) const {
    const size_t at = static_cast<size_t>(c);
    if (model_.version == 1) return Predict(model_, model_.s_code[at]);
    return Predict(model_, model_.s, q_, c, model_.s_mean[at], model_.s_scale[at]);
  }

  void LearnS(int c, int32_t level) {
    if (model_.version != 1) s_context_[static_cast<size_t>(c)] = Context(model_.s, c, level);
  }

  // Planes and semantics at every position of z; all of s is known.
  void BeginZ() {
    for (int i = 0; i < size_.hz(); ++i) {
      for (int j = 0; j < size_.wz(); ++j) {
        int16_t* to = z_input_.At(Position(i, j, size_.wz()));
        SetPlanes(i, j, size_.hz(), size_.wz(), to);
        std::copy(s_context_.begin(), s_context_.end(), to + planes_);
      }
    }
  }

  void PredictZ(int pass, Lattice lattice) {
    if (model_.version == 1) return;
    z_input_.Run(model_.z_passes[pass], lattice, &z_output_, &scratch_);
  }

  Prediction ZAt(int c, size_t at) const {
    if (model_.version == 1) return Predict(model_, model_.z_code[static_cast<size_t>(c)]);
    const int16_t* out = z_output_.At(at);
    return Predict(model_, model_.z, q_, c, out[c], out[model_.num_z + c]);
  }

  void LearnZ(int c, size_t at, int32_t level) {
    z_input_.At(at)[planes_ + semantics_ + c] =
        model_.version == 1 ? ClampActivation(int64_t{level} * (1 << model_.z_shift))
                            : Context(model_.z, c, level);
  }

  // Features: h_s_z of z and s, up-sampled four times, with planes through h_s_y; all of z is
  // known.
  void BeginY() {
    Map a(size_.hz(), size_.wz(), model_.num_z + semantics_);
    for (size_t at = 0; at < size_.z_plane(); ++at) {
      const int16_t* z = z_input_.At(at) + planes_ + semantics_;
      int16_t* to = std::copy(z, z + model_.num_z, a.At(at));
      std::copy(s_context_.begin(), s_context_.end(), to);
    }
    const int u_channels = model_.h_s_z.cout();
    Map u(size_.hz(), size_.wz(), u_channels);
    a.Run(model_.h_s_z, Lattice::kAll, &u, &scratch_);
    Map v(size_.hy, size_.wy, u_channels + planes_);
    for (int i = 0; i < size_.hy; ++i) {
      for (int j = 0; j < size_.wy; ++j) {
        const int16_t* from = u.At(Position(i >> 2, j >> 2, size_.wz()));
        int16_t* to = std::copy(from, from + u_channels, v.At(Position(i, j, size_.wy)));
        SetPlanes(i, j, size_.hy, size_.wy, to);
      }
    }
    v.Run(model_.h_s_y, Lattice::kAll, &y_input_, &scratch_);
  }

  void PredictY(int pass, Lattice lattice) {
    y_input_.Run(model_.passes[static_cast<size_t>(pass)], lattice, &y_output_, &scratch_);
  }

  // What the last PredictY says about channel `c` at raster position `at`.
  // `group_channel` is c minus the first channel of its group, which has `group_size` channels.
  Prediction YAt(int c, int group_channel, int group_size, size_t at) const {
    const int16_t* out = y_output_.At(at);
    Prediction p =
        Predict(model_, model_.y, q_, c, out[group_channel], out[group_size + group_channel]);
    p.priced = c >= model_.num_base();
    return p;
  }

  void LearnY(int c, size_t at, int32_t level) {
    y_input_.At(at)[model_.num_features + c] = Context(model_.y, c, level);
  }

 private:
  static int LargestGroup(const EntropyModel& model) {
    return *std::max_element(model.group_size, model.group_size + model.num_groups);
  }

  static size_t Position(int i, int j, int width) {
    return static_cast<size_t>(i) * static_cast<size_t>(width) + static_cast<size_t>(j);
  }

  // A level as the networks see it.
  int16_t Context(const Quantiser& quantiser, int c, int32_t level) const {
    const int64_t value = int64_t{level} * quantiser.step[quantiser.At(q_, c)];
    return ClampActivation(RoundShift(value, model_.ctx_shift));
  }

  // The quality; where the position lies in the image, on -64..63; the size of y.
  void SetPlanes(int i, int j, int rows, int columns, int16_t* to) const {
    to[0] = static_cast<int16_t>(model_.BaseQuality(q_) >> 1);
    if (planes_ == 1) return;
    to[1] = static_cast<int16_t>((2 * i + 1) * 64 / rows - 64);
    to[2] = static_cast<int16_t>((2 * j + 1) * 64 / columns - 64);
    to[3] = static_cast<int16_t>(std::min(kMaxActivation, 4 * size_.hy));
    to[4] = static_cast<int16_t>(std::min(kMaxActivation, 4 * size_.wy));
  }

  const EntropyModel& model_;
  const LatentSize size_;
  int q_;
  const int planes_, semantics_;
  std::vector<int16_t> s_context_;
  Map z_input_;  // Planes, semantics, then the context of each channel of z.
  Map y_input_;  // Features, then the context of each channel of y.
  Map z_output_, y_output_;
  IntegerNet::Scratch scratch_;
};

// Calls visit(raster position) -> Status for the positions of a lattice until it fails.
template <typename Visit>
Status ForEachPosition(int height, int width, Lattice lattice, const Visit& visit) {
  const ConvArea area = AreaOf(height, width, lattice);
  for (int i = area.first_row; i < height; i += area.row_step) {
    for (int j = area.first_column[i % 2]; j < width; j += area.column_step) {
      const Status status =
          visit(static_cast<size_t>(i) * static_cast<size_t>(width) + static_cast<size_t>(j));
      if (status != Status::kOk) return status;
    }
  }
  return Status::kOk;
}

// Calls visit(part, index, prediction, &level) for the levels of a pass of y, of the channels first
// .. first + size - 1, at a lattice. The index counts in the C-contiguous array of y.
template <typename Visit>
Status ForEachLevelOfPass(LatentSize size, int pass, Lattice lattice, int first, int group_size,
                          Predictor* predictor, const Visit& visit) {
  predictor->PredictY(pass, lattice);
  for (int c = 0; c < group_size; ++c) {
    const Status status = ForEachPosition(size.hy, size.wy, lattice, [&](size_t at) {
      int32_t level = 0;
      const Status got = visit(2 + pass, static_cast<size_t>(first + c) * size.y_plane() + at,
                               predictor->YAt(first + c, c, group_size, at), &level);
      predictor->LearnY(first + c, at, level);
      return got;
    });
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

// The same for the passes of all groups that start at one of the qualities lowest .. highest.
template <typename Visit>
Status ForEachLevelOfGroups(const EntropyModel& model, LatentSize size, int lowest, int highest,
                            Predictor* predictor, const Visit& visit) {
  int first = 0;
  int pass = 0;
  for (int g = 0; g < model.num_groups; ++g) {
    const bool coded = model.group_start[g] >= lowest && model.group_start[g] <= highest;
    for (int step = 0; step < model.group_scan[g]; ++step, ++pass) {
      if (!coded) continue;
      const Lattice lattice = LatticeOf(model.group_scan[g], step);
      const Status status =
          ForEachLevelOfPass(size, pass, lattice, first, model.group_size[g], predictor, visit);
      if (status != Status::kOk) return status;
    }
    first += model.group_size[g];
  }
  return Status::kOk;
}

// Calls visit(part, index, prediction, &level) for all levels but the residual's, in coding order.
// Part 0 is s, part 1 z, part 2 + p pass p of y; the index counts in the C-contiguous array of s, z
// or y.
template <typename Visit>
Status ForEachBaseLevel(const EntropyModel& model, LatentSize size, Predictor* predictor,
                        const Visit& visit) {
  Status status = Status::kOk;
  for (int c = 0; c < model.num_s; ++c) {
    int32_t level = 0;
    status = visit(0, static_cast<size_t>(c), predictor->SAt(c), &level);
    if (status != Status::kOk) return status;
    predictor->LearnS(c, level);
  }
  predictor->BeginZ();
  const int z_scan = model.version == 1 ? 1 : 2;
  for (int pass = 0; pass < z_scan; ++pass) {
    const Lattice lattice = LatticeOf(z_scan, pass);
    predictor->PredictZ(pass, lattice);
    for (int c = 0; c < model.num_z; ++c) {
      status = ForEachPosition(size.hz(), size.wz(), lattice, [&](size_t at) {
        int32_t level = 0;
        const Status got =
            visit(1, static_cast<size_t>(c) * size.z_plane() + at, predictor->ZAt(c, at), &level);
        predictor->LearnZ(c, at, level);
        return got;
      });
      if (status != Status::kOk) return status;
    }
  }
  predictor->BeginY();
  return ForEachLevelOfGroups(model, size, 0, 0, predictor, visit);
}

// The same for the residual's levels at quality q, after ForEachBaseLevel with the same predictor.
template <typename Visit>
Status ForEachResidualLevel(const EntropyModel& model, LatentSize size, int q, Predictor* predictor,
                            const Visit& visit) {
  return ForEachLevelOfGroups(model, size, 1, q, predictor, visit);
}

// The same for all levels that are coded at quality q.
template <typename Visit>
Status ForEachLevel(const EntropyModel& model, LatentSize size, int q, const Visit& visit) {
  Predictor predictor(model, size, q);
  const Status status = ForEachBaseLevel(model, size, &predictor, visit);
  return status == Status::kOk ? ForEachResidualLevel(model, size, q, &predictor, visit) : status;
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

  // One level, or the likely one where the payload was cut.
  Status Get(const EntropyModel& model, const Prediction& p, int32_t* level) {
    if (!cut_) {
      const LevelRange range(model);
      int32_t value = 0;
      const Status status = DecodeValue(model.tables[p.table], &decoder_, &value);
      if (status == Status::kOk) {
        *level = p.base + value * (1 << range.unit_bits);
        return range.Contains(*level) ? Status::kOk : Status::kStreamSymbolOutOfRange;
      }
      if (status != Status::kStreamTruncated || !fill_missing_) return status;
      cut_ = true;
    }
    *level = p.likely;
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
  std::fill_n(y, static_cast<size_t>(model.num_y) * size.y_plane(), 0);  // Where nothing is coded.
  const Status status =
      ForEachLevel(model, size, q, [&](int part, size_t at, const Prediction& p, int32_t* level) {
        const Status got = source->Get(model, p, level);
        (part == 0 ? s : part == 1 ? z : y)[at] = *level;
        return got;
      });
  return status == Status::kOk ? source->Finish() : status;
}

const int32_t* Source(const LatentsView& latents, int part) {
  return part == 0 ? latents.s : part == 1 ? latents.z : latents.y;
}

bool AllInRange(const EntropyModel& model, const LatentsView& latents, LatentSize size) {
  const LevelRange range(model);
  return InRange(range, latents.s, static_cast<size_t>(model.num_s)) &&
         InRange(range, latents.z, static_cast<size_t>(model.num_z) * size.z_plane()) &&
         InRange(range, latents.y, static_cast<size_t>(model.num_y) * size.y_plane());
}

// log2 of n in 1/256, rounded down; n in 1 .. 65535.
int32_t Log2(uint32_t n) {
  int32_t whole = 0;
  while (n >> (whole + 1) != 0) ++whole;
  uint32_t mantissa = n << (15 - whole);  // Q15, 1 .. 2.
  int32_t bits = whole;
  for (int bit = 0; bit < 8; ++bit) {
    const uint32_t square = (mantissa * mantissa) >> 15;
    bits = 2 * bits + static_cast<int32_t>(square >> 16);
    mantissa = square >> (square >> 16);
  }
  return bits;
}

// 1024 times the squared error of a value in 1/16 of a symbol, plus its bits in 1/256 at a price in
// 1/1024 of a squared symbol: both in 2^-18.
int64_t Cost(const CdfTable& table, int32_t value, int64_t error, int32_t price) {
  const int64_t bits = 16 * 256 - Log2(table.Frequency(value - table.offset));
  return 1024 * error * error + price * bits;
}

// The value that codes the level nearest to *level, which becomes that one. Where the prediction is
// priced, the value next to it towards zero may be worth more: among small neighbours, where a
// value other than zero is improbable, it takes more to be coded. A level that has a code keeps it.
int32_t Quantise(const EntropyModel& model, const LevelRange& range, const Prediction& p,
                 int32_t* level, int32_t price = kPrice) {
  const int32_t unit = 1 << range.unit_bits;
  int32_t value = static_cast<int32_t>(RoundShift(int64_t{*level} - p.base, range.unit_bits));
  if (p.priced && value != 0 && p.base + value * unit != *level) {
    const CdfTable& table = model.tables[p.table];
    const int32_t smaller = value < 0 ? value + 1 : value - 1;
    if (table.IsRegular(value) && table.IsRegular(smaller)) {
      const int64_t target = int64_t{*level} - p.base;
      if (Cost(table, smaller, target - int64_t{smaller} * unit, price) <
          Cost(table, value, target - int64_t{value} * unit, price)) {
        value = smaller;
      }
    }
  }
  if (p.base + value * unit > range.highest) --value;
  if (p.base + value * unit < range.lowest) ++value;
  *level = p.base + value * unit;
  return value;
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
  if (!AllInRange(model, latents, size)) return Status::kSymbolOutOfRange;
  const LevelRange range(model);
  return ForEachLevel(model, size, q,
                      [&](int part, size_t at, const Prediction& p, int32_t* level) {
                        *level = Source(latents, part)[at];
                        sink->Put(part, model.tables[p.table], Quantise(model, range, p, level));
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

struct CodedBase::State {
  State(const EntropyModel& model_in, LatentSize size_in)
      : model(model_in),
        size(size_in),
        predictor(model_in, size_in, model_in.residual_from),
        s(static_cast<size_t>(model_in.num_s)),
        z(static_cast<size_t>(model_in.num_z) * size_in.z_plane()),
        y(static_cast<size_t>(model_in.num_y) * size_in.y_plane()) {}

  const EntropyModel& model;
  const LatentSize size;
  Predictor predictor;
  RangeEncoder encoder;
  std::vector<int32_t> s, z, y;
};

CodedBase::CodedBase() = default;
CodedBase::~CodedBase() = default;

Status CodedBase::Code(const EntropyModel& model, const LatentsView& latents, LatentSize size) {
  const Status status = CheckArguments(size, model, model.residual_from);
  if (status != Status::kOk) return status;
  if (!AllInRange(model, latents, size)) return Status::kSymbolOutOfRange;
  const LevelRange range(model);
  state_ = std::make_unique<State>(model, size);
  State& state = *state_;
  return ForEachBaseLevel(
      model, size, &state.predictor, [&](int part, size_t at, const Prediction& p, int32_t* level) {
        *level = Source(latents, part)[at];
        EncodeValue(model.tables[p.table], Quantise(model, range, p, level), &state.encoder);
        (part == 0 ? state.s : part == 1 ? state.z : state.y)[at] = *level;
        return Status::kOk;
      });
}

const std::vector<int32_t>& CodedBase::s() const { return state_->s; }
const std::vector<int32_t>& CodedBase::z() const { return state_->z; }
const std::vector<int32_t>& CodedBase::y() const { return state_->y; }
LatentSize CodedBase::size() const { return state_->size; }
int CodedBase::num_residual() const { return state_->model.num_y - state_->model.num_base(); }

Status CodedBase::Encode(const int32_t* residual, const int32_t* prices, int q,
                         std::vector<uint8_t>* payload) const {
  const EntropyModel& model = state_->model;
  if (q < model.residual_from || q >= model.num_q) return Status::kBadQuality;
  const LevelRange range(model);
  const LatentSize size = state_->size;
  if (!InRange(range, residual, static_cast<size_t>(num_residual()) * size.y_plane())) {
    return Status::kSymbolOutOfRange;
  }
  if (prices != nullptr && !std::all_of(prices, prices + size.y_plane(), [](int32_t price) {
        return price >= 0 && price <= kMaxPrice;
      })) {
    return Status::kPriceOutOfRange;
  }
  const size_t first = static_cast<size_t>(model.num_base()) * size.y_plane();
  Predictor predictor = state_->predictor;
  predictor.SetQuality(q);
  RangeEncoder encoder = state_->encoder;
  const Status status = ForEachResidualLevel(
      model, size, q, &predictor, [&](int, size_t at, const Prediction& p, int32_t* level) {
        *level = residual[at - first];
        const int32_t price = prices == nullptr ? kPrice : prices[(at - first) % size.y_plane()];
        EncodeValue(model.tables[p.table], Quantise(model, range, p, level, price), &encoder);
        return Status::kOk;
      });
  encoder.Finish(payload);
  return status;
}

Status PredictIndexes(const EntropyModel& model, const LatentsView& latents, LatentSize size, int q,
                      bool with_residual, int32_t* base, uint16_t* table) {
  const Status status = CheckArguments(size, model, q);
  if (status != Status::kOk) return status;
  if (!AllInRange(model, latents, size)) return Status::kSymbolOutOfRange;
  const LevelRange range(model);
  std::fill_n(base, static_cast<size_t>(model.num_y) * size.y_plane(), 0);
  std::fill_n(table, static_cast<size_t>(model.num_y) * size.y_plane(), uint16_t{0});
  const auto visit = [&](int part, size_t at, const Prediction& p, int32_t* level) {
    *level = Source(latents, part)[at];
    Quantise(model, range, p, level);
    if (part >= 2) {
      base[at] = p.base;
      table[at] = p.table;
    }
    return Status::kOk;
  };
  if (with_residual) return ForEachLevel(model, size, q, visit);
  Predictor predictor(model, size, q);
  return ForEachBaseLevel(model, size, &predictor, visit);
}

}  // namespace fasdiff
