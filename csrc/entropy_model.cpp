#include "entropy_model.h"

#include <cstring>
#include <utility>

namespace fasdiff {
namespace {

constexpr uint8_t kMagic[7] = {'F', 'S', 'D', 'E', 'M', 0, 0};  // Then the version.
constexpr int32_t kStepLimit = 1 << 24;
constexpr int32_t kGainLimit = 1 << 20;
constexpr int kMaxActivation = 127;  // Of contexts and planes.

// Little-endian reads that stop at the end: a short read gives zero and clears ok().
class ByteReader {
 public:
  ByteReader(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool ok() const { return ok_; }
  size_t left() const { return left_; }

  const uint8_t* Take(size_t size) {
    if (size > left_) {
      ok_ = false;
      left_ = 0;
      return nullptr;
    }
    const uint8_t* at = data_;
    data_ += size;
    left_ -= size;
    return at;
  }

  uint32_t U(size_t size) {
    const uint8_t* at = Take(size);
    uint32_t value = 0;
    for (size_t i = 0; at != nullptr && i < size; ++i) value |= uint32_t{at[i]} << (8 * i);
    return value;
  }
  int U8() { return static_cast<int>(U(1)); }
  int U16() { return static_cast<int>(U(2)); }
  uint32_t U32() { return U(4); }
  int16_t I16() { return static_cast<int16_t>(static_cast<uint16_t>(U(2))); }
  int32_t I32() { return static_cast<int32_t>(U(4)); }

 private:
  const uint8_t* data_;
  size_t left_;
  bool ok_ = true;
};

bool InRange(int value, int lo, int hi) { return value >= lo && value <= hi; }

Status ParseCounts(ByteReader* in, EntropyModel* m) {
  const uint8_t* magic = in->Take(sizeof(kMagic));
  if (magic == nullptr) return Status::kModelTruncated;
  if (std::memcmp(magic, kMagic, sizeof(kMagic)) != 0) return Status::kModelBadMagic;
  m->version = in->U8();
  if (!in->ok()) return Status::kModelTruncated;
  if (m->version != 1 && m->version != 5) return Status::kModelBadMagic;
  m->num_s = in->U16();
  m->num_z = in->U16();
  m->num_y = in->U16();
  m->num_features = in->U16();
  m->num_groups = in->U16();
  if (!in->ok()) return Status::kModelTruncated;
  if (!InRange(m->num_s, 0, 256) || !InRange(m->num_z, 1, 256) || !InRange(m->num_y, 1, 512) ||
      !InRange(m->num_features, 1, 256) || !InRange(m->num_groups, 1, kMaxGroups)) {
    return Status::kModelBadCounts;
  }
  int sum = 0;
  bool bad_group = false;
  for (int g = 0; g < m->num_groups; ++g) {
    m->group_size[g] = in->U16();
    m->group_scan[g] = m->version == 1 ? 2 : in->U8();
    m->group_start[g] = m->version == 1 ? 0 : in->U8();
    sum += m->group_size[g];
    const int start = m->group_start[g];
    bad_group = bad_group || m->group_size[g] == 0 || !InRange(m->group_scan[g], 1, kMaxScan) ||
                !InRange(start, g == 0 ? 0 : m->group_start[g - 1], g == 0 ? 0 : kNumQualities - 1);
    if (start != 0 && m->residual_from == kNoResidual) m->residual_from = start;
  }
  m->num_q = in->U16();
  m->num_scales = in->U16();
  m->ctx_shift = in->U8();
  m->mean_shift = in->U8();
  m->scale_shift = in->U8();
  if (m->version == 1) m->z_shift = in->U8();
  if (!in->ok()) return Status::kModelTruncated;
  if (sum != m->num_y || bad_group) return Status::kModelBadGroups;
  if (m->num_q != kNumQualities || !InRange(m->num_scales, 1, 256)) return Status::kModelBadCounts;
  if (m->ctx_shift > 24 || m->mean_shift > 24 || m->scale_shift > 24 || m->z_shift > 7) {
    return Status::kModelBadShift;
  }
  return Status::kOk;
}

Status ParseTables(ByteReader* in, EntropyModel* m) {
  const uint32_t num_tables = in->U32();
  if (!in->ok()) return Status::kModelTruncated;
  const uint32_t needed = static_cast<uint32_t>(m->num_scales) * (m->version == 1 ? 4u : 1u);
  if (num_tables < needed || num_tables > kMaxTables) {
    return Status::kModelBadCounts;
  }
  uint16_t frequencies[kMaxRegularSymbols + 1];
  for (uint32_t t = 0; t < num_tables; ++t) {
    const int32_t offset = in->I16();
    const int num_regular = in->U16();
    if (!in->ok()) return Status::kModelTruncated;
    if (!InRange(num_regular, 1, kMaxRegularSymbols)) return Status::kModelBadTable;
    if (in->left() < 2 * (static_cast<size_t>(num_regular) + 1)) return Status::kModelTruncated;
    for (int i = 0; i <= num_regular; ++i) frequencies[i] = static_cast<uint16_t>(in->U16());
    m->tables.emplace_back();
    const Status status = MakeCdfTable(offset, num_regular, frequencies, &m->tables.back());
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

Status ParseStaticCodes(ByteReader* in, size_t num_tables, int count,
                        std::vector<StaticCode>* codes) {
  for (int i = 0; i < count; ++i) {
    StaticCode code;
    code.base = in->I16();
    code.table = static_cast<uint16_t>(in->U16());
    if (!in->ok()) return Status::kModelTruncated;
    if (code.table >= num_tables) return Status::kModelBadTableReference;
    codes->push_back(code);
  }
  return Status::kOk;
}

Status ParsePriorOfS(ByteReader* in, EntropyModel* m) {
  for (std::vector<int16_t>* values : {&m->s_mean, &m->s_scale}) {
    values->resize(static_cast<size_t>(m->num_s));
    for (int16_t& value : *values) value = in->I16();
  }
  return in->ok() ? Status::kOk : Status::kModelTruncated;
}

Status ParseQuantiser(ByteReader* in, int num_q, int channels, Quantiser* quantiser) {
  const size_t count = static_cast<size_t>(num_q) * static_cast<size_t>(channels);
  if (in->left() < count * (4 + 4 + 2)) return Status::kModelTruncated;
  quantiser->channels = channels;
  quantiser->step.resize(count);
  quantiser->gain.resize(count);
  quantiser->index_offset.resize(count);
  for (int32_t& step : quantiser->step) {
    step = in->I32();
    if (step < 1 || step >= kStepLimit) return Status::kModelBadQuantiser;
  }
  for (int32_t& gain : quantiser->gain) {
    gain = in->I32();
    if (gain < 1 || gain >= kGainLimit) return Status::kModelBadQuantiser;
  }
  for (int16_t& offset : quantiser->index_offset) offset = in->I16();
  return Status::kOk;
}

Status ParseLayer(ByteReader* in, ConvLayer* layer) {
  const int cin = in->U16();
  const int cout = in->U16();
  const int k = in->U8();
  const int shift = in->U8();
  const int lo = in->I16();
  const int hi = in->I16();
  if (!in->ok()) return Status::kModelTruncated;
  if (cin < 1 || cout < 1 || cout > kMaxChannels || (k != 1 && k != 3)) {
    return Status::kModelBadLayer;
  }
  const size_t num_weights = static_cast<size_t>(cin) * static_cast<size_t>(cout * k * k);
  const uint8_t* weight = in->Take(num_weights);
  if (weight == nullptr || in->left() < 4 * static_cast<size_t>(cout)) {
    return Status::kModelTruncated;
  }
  int32_t bias[kMaxChannels];
  for (int o = 0; o < cout; ++o) bias[o] = in->I32();
  return layer->Init(cin, cout, k, shift, lo, hi, reinterpret_cast<const int8_t*>(weight), bias);
}

// A network from `cin` channels with |values| <= max_input to `cout` channels (0: any number).
Status ParseNet(ByteReader* in, int cin, int cout, int max_input, IntegerNet* net) {
  const int num_layers = in->U16();
  if (!in->ok()) return Status::kModelTruncated;
  if (!InRange(num_layers, 1, kMaxLayers)) return Status::kModelBadCounts;
  for (int l = 0; l < num_layers; ++l) {
    ConvLayer layer;
    Status status = ParseLayer(in, &layer);
    if (status == Status::kOk) status = net->Append(std::move(layer));
    if (status != Status::kOk) return status;
  }
  if (net->cin() != cin || (cout != 0 && net->cout() != cout)) return Status::kModelBadLayerChain;
  return net->CheckAccumulators(max_input);
}

Status ParseNets(ByteReader* in, EntropyModel* m) {
  const auto at_least_activation = [](int v) { return v > kMaxActivation ? v : kMaxActivation; };
  const int planes = m->version == 1 ? 1 : kNumPlanes;
  const int semantics = m->version == 1 ? 0 : m->num_s;
  Status status = Status::kOk;
  for (int h = 0; h < 2 && m->version != 1; ++h) {
    status = ParseNet(in, planes + semantics + (h == 0 ? 0 : m->num_z), 2 * m->num_z,
                      kMaxActivation, &m->z_passes[h]);
    if (status != Status::kOk) return status;
  }
  status = ParseNet(in, m->num_z + semantics, 0, kMaxActivation, &m->h_s_z);
  if (status != Status::kOk) return status;
  status = ParseNet(in, m->h_s_z.cout() + planes, m->num_features,
                    at_least_activation(m->h_s_z.max_output()), &m->h_s_y);
  if (status != Status::kOk) return status;
  const int max_input = at_least_activation(m->h_s_y.max_output());
  m->passes.resize(static_cast<size_t>(m->num_passes()));
  IntegerNet* pass = m->passes.data();
  int before = m->num_features;
  for (int g = 0; g < m->num_groups; ++g) {
    for (int step = 0; step < m->group_scan[g]; ++step, ++pass) {
      const int cin = before + (step == 0 ? 0 : m->group_size[g]);
      status = ParseNet(in, cin, 2 * m->group_size[g], max_input, pass);
      if (status != Status::kOk) return status;
    }
    before += m->group_size[g];
  }
  return Status::kOk;
}

// What lies between the tables and the networks.
Status ParseLatents1(ByteReader* in, EntropyModel* m) {
  const size_t num_tables = m->tables.size();
  Status status = ParseStaticCodes(in, num_tables, m->num_s, &m->s_code);
  if (status == Status::kOk) status = ParseStaticCodes(in, num_tables, m->num_z, &m->z_code);
  if (status == Status::kOk) status = ParseQuantiser(in, m->num_q, m->num_y, &m->y);
  return status;
}

// Rows above residual_from become that row, in channels 0 .. count - 1.
void StopAtResidual(const EntropyModel& m, int count, Quantiser* quantiser) {
  for (int q = m.residual_from + 1; q < m.num_q; ++q) {
    for (int c = 0; c < count; ++c) {
      const size_t to = quantiser->At(q, c), from = quantiser->At(m.residual_from, c);
      quantiser->step[to] = quantiser->step[from];
      quantiser->gain[to] = quantiser->gain[from];
      quantiser->index_offset[to] = quantiser->index_offset[from];
    }
  }
}

Status ParseLatents5(ByteReader* in, EntropyModel* m) {
  Status status = ParsePriorOfS(in, m);
  if (status == Status::kOk) status = ParseQuantiser(in, m->num_q, m->num_s, &m->s);
  if (status == Status::kOk) status = ParseQuantiser(in, m->num_q, m->num_z, &m->z);
  if (status == Status::kOk) status = ParseQuantiser(in, m->num_q, m->num_y, &m->y);
  if (status == Status::kOk) {
    StopAtResidual(*m, m->num_s, &m->s);
    StopAtResidual(*m, m->num_z, &m->z);
    StopAtResidual(*m, m->num_base(), &m->y);
  }
  return status;
}

}  // namespace

Lattice LatticeOf(int scan, int step) {
  if (scan == 1) return Lattice::kAll;
  if (scan == 2) return step == 0 ? Lattice::kEven : Lattice::kOdd;
  return step == 0 ? Lattice::kEvenEven : step == 1 ? Lattice::kOddOdd : Lattice::kOdd;
}

Status ParseEntropyModel(const uint8_t* data, size_t size, EntropyModel* model) {
  *model = EntropyModel();
  ByteReader in(data, size);
  Status status = ParseCounts(&in, model);
  if (status == Status::kOk) status = ParseTables(&in, model);
  if (status == Status::kOk) {
    status = model->version == 1 ? ParseLatents1(&in, model) : ParseLatents5(&in, model);
  }
  if (status == Status::kOk) status = ParseNets(&in, model);
  if (status == Status::kOk && in.left() != 0) status = Status::kModelTrailingBytes;
  return status;
}

}  // namespace fasdiff
