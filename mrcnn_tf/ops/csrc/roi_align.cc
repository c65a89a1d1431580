// RoIAlign (He et al., 2017, section 3) and Shape-aware RoIAlign (Ding et al., equations 3 to 5) over a feature
// pyramid: all levels and all boxes of a batch in one call, on TensorFlow's thread pool.
//
// A bin of a box is a weighted sum of cells, vectors of C channels that lie together in memory. Along each axis
// a bin touches few distinct cells, however many samples it has: those are found once for a box ("axis table").
// The weights of a bin's cells follow from two axis tables and, where there is a map, from the map's values at
// the samples. What remains is one vectorised pass over channels for each bin (roi_align_kernels.inc).
//
// Sums are made in float32 and in an order that does not depend on the number of threads. Semantics are those
// of mrcnn_tf/ops/roi_align.py and sampling.py; change them together.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MRCNN_X86 1
#else
#define MRCNN_X86 0
#endif

namespace mrcnn {

using tensorflow::bfloat16;
using tensorflow::DEVICE_CPU;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;
using tensorflow::thread::ThreadPool;
using half = Eigen::half;

// A cell's place in a map, in elements, and its weight in a bin.
struct Cell {
  std::ptrdiff_t offset;
  float weight;
};

// --- channels --------------------------------------------------------------------------------------------

#if MRCNN_X86
#define MRCNN_ISA avx512
#define MRCNN_TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")))
#define MRCNN_LANES 16
#define MRCNN_F16 1
#include "roi_align_kernels.inc"
#undef MRCNN_ISA
#undef MRCNN_TARGET
#undef MRCNN_LANES
#undef MRCNN_F16

#define MRCNN_ISA avx2
#define MRCNN_TARGET __attribute__((target("avx2,fma,f16c")))
#define MRCNN_LANES 8
#define MRCNN_F16 1
#include "roi_align_kernels.inc"
#undef MRCNN_ISA
#undef MRCNN_TARGET
#undef MRCNN_LANES
#undef MRCNN_F16
#endif

#define MRCNN_ISA any
#define MRCNN_TARGET
#define MRCNN_LANES 4
#define MRCNN_F16 0
#include "roi_align_kernels.inc"

// Floats in the widest register to use; less for testing the narrower copies.
#ifndef MRCNN_MAX_LANES
#define MRCNN_MAX_LANES 16
#endif

// The best copy of the loops for this processor.
template <typename T>
struct Kernels {
  void (*gather)(const T*, const Cell*, int, int, T*) = any::Gather<T>;
  void (*scatter)(const T*, const Cell*, int, int, float*) = any::Scatter<T>;
  void (*dot)(const T*, const T*, const Cell*, int, int, float*) = any::Dot<T>;
  void (*convert)(const float*, int, T*) = any::Convert<T>;

  Kernels() {
#if MRCNN_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (MRCNN_MAX_LANES >= 16 && has_avx512) {
      gather = avx512::Gather<T>;
      scatter = avx512::Scatter<T>;
      dot = avx512::Dot<T>;
      convert = avx512::Convert<T>;
    } else if (MRCNN_MAX_LANES >= 8 && has_avx2) {  // every processor with AVX2 has F16C
      gather = avx2::Gather<T>;
      scatter = avx2::Scatter<T>;
      dot = avx2::Dot<T>;
      convert = avx2::Convert<T>;
    }
#endif
  }
};

// Other threads see what was streamed before this.
inline void EndStreams() {
#if MRCNN_X86
  _mm_sfence();
#endif
}

// Asks for memory that will soon be read; any address will do.
inline void Prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#endif
}

// --- geometry --------------------------------------------------------------------------------------------

struct Options {
  std::vector<int> strides;
  int output_size;
  int ratio;  // samples along a bin's side
  bool aligned;

  int points() const { return output_size * ratio; }
};

// Pixels. Further out no map reaches, and cell numbers would not fit an int.
constexpr float kFarthest = 1e6f;

struct Box {
  float y1, x1, y2, x2;
};

Box ReadBox(const float* from) {
  float c[4];
  for (int i = 0; i < 4; ++i) {
    c[i] = std::isnan(from[i]) ? 0.0f : std::min(std::max(from[i], -kFarthest), kFarthest);
  }
  return {c[0], c[1], c[2], c[3]};
}

// sampling.py: assign_levels.
int LevelOf(const Box& box, const std::vector<int>& strides) {
  const float area = std::max(box.y2 - box.y1, 0.0f) * std::max(box.x2 - box.x1, 0.0f);
  int first = 0;
  while ((strides[0] >> (first + 1)) > 0) ++first;
  int level = 0;
  for (int i = 1; i < static_cast<int>(strides.size()); ++i) {
    const double side = 224.0 * std::ldexp(1.0, first + i - 4);
    level += area >= static_cast<float>(side * side);
  }
  return level;
}

// The cells that each bin of an axis touches. Bin b of axis a has count(a, b) of them, 2 * ratio at most.
class AxisTables {
 public:
  AxisTables(int64_t axes, const Options& options)
      : bins_(options.output_size), ratio_(options.ratio), width_(2 * options.ratio) {
    const int64_t all = axes * bins_;
    count_.reset(new int[all]);
    cell_.reset(new int[all * width_]);
    sum_.reset(new float[all * width_]);
    weight_.reset(new float[all * width_ * ratio_]);
  }

  int count(int64_t axis, int bin) const { return count_[axis * bins_ + bin]; }
  const int* cells(int64_t axis, int bin) const { return &cell_[(axis * bins_ + bin) * width_]; }
  // Each cell's weight, all samples of the bin together.
  const float* sums(int64_t axis, int bin) const { return &sum_[(axis * bins_ + bin) * width_]; }
  // Each cell's weight in one sample of the bin.
  const float* weights(int64_t axis, int bin, int sample) const {
    return &weight_[((axis * bins_ + bin) * ratio_ + sample) * width_];
  }
  int width() const { return width_; }

  // sampling.py: cell_weights; `scale` multiplies every weight.
  void Fill(int64_t axis, float low, float high, float stride, int size, bool aligned, float scale) {
    low /= stride;
    high /= stride;
    // A whole cell near the box is kept apart: far from the origin, float32 could not hold the sum as exactly.
    const float cell = std::floor(low);
    const float length = aligned ? high - low : std::max(high - low, 1.0f);
    const float step = length / static_cast<float>(bins_ * ratio_);
    const float start = low - cell - (aligned ? 0.5f : 0.0f) + 0.5f * step;
    for (int bin = 0; bin < bins_; ++bin) {
      const int64_t entry = axis * bins_ + bin;
      int* cells = &cell_[entry * width_];
      float* sums = &sum_[entry * width_];
      float* weights = &weight_[entry * width_ * ratio_];
      std::fill(sums, sums + width_, 0.0f);
      std::fill(weights, weights + width_ * ratio_, 0.0f);
      int count = 0;
      for (int sample = 0; sample < ratio_; ++sample) {
        const float at = start + step * static_cast<float>(bin * ratio_ + sample);
        const float floor = std::floor(at);
        float share = at - floor;
        const int before = static_cast<int>(floor) + static_cast<int>(cell);
        if (before < -1 || before > size || (before == size && share > 0.0f)) continue;
        if (before < 0 || before >= size - 1) share = 0.0f;
        const int near = std::min(std::max(before, 0), size - 1);
        for (int side = 0; side < 2; ++side) {
          const float weight = scale * (side == 0 ? 1.0f - share : share);
          if (weight == 0.0f) continue;
          const int place = std::find(cells, cells + count, near + side) - cells;
          if (place == count) cells[count++] = near + side;
          sums[place] += weight;
          weights[sample * width_ + place] += weight;
        }
      }
      count_[entry] = count;
    }
  }

 private:
  int bins_, ratio_, width_;
  std::unique_ptr<int[]> count_, cell_;
  std::unique_ptr<float[]> sum_, weight_;
};

// Bilinear resize of one axis with half-pixel centres and clamped borders: for each point, the entries on its
// sides and the second one's share.
struct Resize {
  std::vector<int> low, high;
  std::vector<float> share;

  Resize(int size, int points) : low(points), high(points), share(points) {
    for (int i = 0; i < points; ++i) {
      const double at = (i + 0.5) * size / points - 0.5;
      const double floor = std::floor(at);
      low[i] = std::max(static_cast<int>(floor), 0);
      high[i] = std::min(static_cast<int>(floor) + 1, size - 1);
      share[i] = static_cast<float>(at - floor);
    }
  }
};

// A map's values at the samples, [points, points]; `row` is room for one row of the map. Equal neighbours give
// just their value, so that a map of ones has ones.
void ResizeMap(const float* map, int width, const Resize& y, const Resize& x, float* row, float* out) {
  const int points = y.low.size();
  for (int i = 0; i < points; ++i) {
    const float* top = map + static_cast<int64_t>(y.low[i]) * width;
    const float* bottom = map + static_cast<int64_t>(y.high[i]) * width;
    const float share = y.share[i];
    for (int j = 0; j < width; ++j) row[j] = top[j] + (bottom[j] - top[j]) * share;
    for (int j = 0; j < points; ++j) {
      const float low = row[x.low[j]];
      out[i * points + j] = low + (row[x.high[j]] - low) * x.share[j];
    }
  }
}

// Its transpose: adds the samples' gradients to the map's.
void ResizeMapGradient(const float* upstream, int width, const Resize& y, const Resize& x, float* map) {
  const int points = y.low.size();
  for (int i = 0; i < points; ++i) {
    float* top = map + static_cast<int64_t>(y.low[i]) * width;
    float* bottom = map + static_cast<int64_t>(y.high[i]) * width;
    for (int j = 0; j < points; ++j) {
      const float g = upstream[i * points + j];
      const float b = g * y.share[i], a = g - b;
      top[x.low[j]] += a * (1.0f - x.share[j]);
      top[x.high[j]] += a * x.share[j];
      bottom[x.low[j]] += b * (1.0f - x.share[j]);
      bottom[x.high[j]] += b * x.share[j];
    }
  }
}

// The weights of one bin's cells: weights[cy][cx] = sum over sample rows i of y_weights[i][cy] * x_weights[i][cx].
// All rows are 2 * ratio long, zeros where there is no cell. Not inlined, so that RoIAlign and Shape-aware RoIAlign
// with a map of ones have the same bits. kRatio is the ratio where that is known to the compiler, else 0.
template <int kRatio>
__attribute__((noinline)) void Outer(const float* y_weights, const float* x_weights, int x_stride, int ny,
                                     int ratio, float* weights) {
  if (kRatio > 0) ratio = kRatio;
  const int width = 2 * ratio;
  for (int cy = 0; cy < ny; ++cy) {
    float* row = weights + cy * width;
    for (int cx = 0; cx < width; ++cx) row[cx] = y_weights[cy] * x_weights[cx];
    for (int i = 1; i < ratio; ++i) {
      const float y_weight = y_weights[i * width + cy];
      for (int cx = 0; cx < width; ++cx) row[cx] += y_weight * x_weights[i * x_stride + cx];
    }
  }
}

// sums[i][cx] = sum over the samples j of row i of weights[j][cx] * value of sample (i, j).
template <int kRatio>
void WeighRows(const float* weights, const float* values, int points, int ratio, float* sums) {
  if (kRatio > 0) ratio = kRatio;
  const int width = 2 * ratio;
  for (int i = 0; i < ratio; ++i) {
    const float* row = values + i * points;
    float* out = sums + i * width;
    for (int cx = 0; cx < width; ++cx) out[cx] = weights[cx] * row[0];
    for (int j = 1; j < ratio; ++j) {
      for (int cx = 0; cx < width; ++cx) out[cx] += weights[j * width + cx] * row[j];
    }
  }
}

// Makes the weights of bins one after the other; one for each thread.
class BinWeights {
 public:
  BinWeights(const AxisTables& tables, const Options& options)
      : tables_(tables),
        options_(options),
        x_(tables.width() * options.ratio),
        weights_(tables.width() * tables.width()) {}

  // Axes 2 * slot and 2 * slot + 1 of the tables; `at_samples` [points, points] or null. Returns a row of
  // tables.width() for each y cell.
  const float* Get(int64_t slot, int by, int bx, const float* at_samples) {
    return options_.ratio == 2 ? Make<2>(slot, by, bx, at_samples) : Make<0>(slot, by, bx, at_samples);
  }

 private:
  template <int kRatio>
  const float* Make(int64_t slot, int by, int bx, const float* at_samples) {
    const int64_t y_axis = 2 * slot, x_axis = y_axis + 1;
    const int ratio = options_.ratio, points = options_.points();
    const float* x = tables_.sums(x_axis, bx);
    if (at_samples != nullptr) {
      WeighRows<kRatio>(tables_.weights(x_axis, bx, 0), at_samples + by * ratio * points + bx * ratio, points,
                        ratio, x_.data());
      x = x_.data();
    }
    Outer<kRatio>(tables_.weights(y_axis, by, 0), x, at_samples == nullptr ? 0 : tables_.width(),
                  tables_.count(y_axis, by), ratio, weights_.data());
    return weights_.data();
  }

  const AxisTables& tables_;
  const Options& options_;
  std::vector<float> x_, weights_;
};

// --- what the ops share ----------------------------------------------------------------------------------

// The inputs of all three ops, checked.
struct Inputs {
  std::vector<const Tensor*> maps;
  const Tensor* boxes;
  const Tensor* probabilities = nullptr;  // null: plain RoIAlign
  int64_t images, count;
  int channels;

  int64_t all() const { return images * count; }
  Box box(int64_t index) const { return ReadBox(boxes->flat<float>().data() + 4 * index); }
  int height(int level) const { return maps[level]->dim_size(1); }
  int width(int level) const { return maps[level]->dim_size(2); }
  int64_t map_size() const { return probabilities->dim_size(2) * probabilities->dim_size(3); }
  const float* map_of(int64_t index) const {
    return probabilities->flat<float>().data() + index * map_size();
  }
};

class RoiAlignOp : public OpKernel {
 public:
  explicit RoiAlignOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("strides", &options_.strides));
    OP_REQUIRES_OK(context, context->GetAttr("output_size", &options_.output_size));
    OP_REQUIRES_OK(context, context->GetAttr("sampling_ratio", &options_.ratio));
    OP_REQUIRES_OK(context, context->GetAttr("aligned", &options_.aligned));
    OP_REQUIRES(context, int64_t{options_.output_size} * options_.ratio <= 4096,
                absl::InvalidArgumentError("RoIAlign: more than 4096 samples along a side"));
    for (int stride : options_.strides) {
      OP_REQUIRES(context, stride > 0, absl::InvalidArgumentError("RoIAlign: strides must be positive"));
    }
  }

 protected:
  absl::Status Read(OpKernelContext* context, Inputs* in) const {
    OpInputList maps, probabilities;
    TF_RETURN_IF_ERROR(context->input_list("features", &maps));
    TF_RETURN_IF_ERROR(context->input("boxes", &in->boxes));
    TF_RETURN_IF_ERROR(context->input_list("probabilities", &probabilities));
    if (maps.size() != static_cast<int>(options_.strides.size())) {
      return absl::InvalidArgumentError("RoIAlign: needs one stride for each map");
    }
    if (in->boxes->dims() != 3 || in->boxes->dim_size(2) != 4) {
      return absl::InvalidArgumentError("RoIAlign: boxes must be [B, N, 4]");
    }
    in->images = in->boxes->dim_size(0);
    in->count = in->boxes->dim_size(1);
    for (const Tensor& map : maps) {
      in->maps.push_back(&map);
      if (map.dims() != 4 || map.dim_size(0) != in->images || map.dim_size(3) != maps[0].dim_size(3)) {
        return absl::InvalidArgumentError("RoIAlign: maps must be [B, H, W, C] with one B and one C");
      }
      if (in->all() > 0 && (map.dim_size(1) < 1 || map.dim_size(2) < 1)) {
        return absl::InvalidArgumentError("RoIAlign: a map has no cells");
      }
      if (map.dim_size(1) > 1 << 30 || map.dim_size(2) > 1 << 30 || map.dim_size(3) > 1 << 30) {
        return absl::InvalidArgumentError("RoIAlign: a map is too large");
      }
    }
    in->channels = maps[0].dim_size(3);
    if (probabilities.size() > 1) {
      return absl::InvalidArgumentError("RoIAlign: takes one tensor of maps or none");
    }
    if (probabilities.size() == 1) {
      in->probabilities = &probabilities[0];
      const TensorShape& shape = probabilities[0].shape();
      if (shape.dims() != 4 || shape.dim_size(0) != in->images || shape.dim_size(1) != in->count ||
          shape.dim_size(2) < 1 || shape.dim_size(3) < 1 || shape.dim_size(2) > 1 << 15 ||
          shape.dim_size(3) > 1 << 15) {
        return absl::InvalidArgumentError("RoIAlign: probabilities must be [B, N, Hp, Wp] with Hp, Wp >= 1");
      }
    }
    return absl::OkStatus();
  }

  // [B, N, S, S, C]
  TensorShape OutputShape(const Inputs& in) const {
    return TensorShape({in.images, in.count, options_.output_size, options_.output_size, in.channels});
  }

  absl::Status CheckUpstream(const Inputs& in, const Tensor& upstream) const {
    if (upstream.shape() != OutputShape(in)) {
      return absl::InvalidArgumentError("RoIAlign: the gradient does not have the output's shape");
    }
    return absl::OkStatus();
  }

  // All boxes, neighbours in a map one after the other, so that they find its cells in the cache.
  std::vector<int64_t> CacheOrder(const Inputs& in) const {
    struct Place {
      int64_t image;
      int level;
      float y;
      int64_t index;
    };
    std::vector<Place> places(in.all());
    for (int64_t i = 0; i < in.all(); ++i) {
      const Box box = in.box(i);
      places[i] = {i / in.count, LevelOf(box, options_.strides), box.y1, i};
    }
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return std::tie(a.image, a.level, a.y, a.index) < std::tie(b.image, b.level, b.y, b.index);
    });
    std::vector<int64_t> order(in.all());
    for (int64_t i = 0; i < in.all(); ++i) order[i] = places[i].index;
    return order;
  }

  // Both axes of a box; returns its level.
  int FillTables(const Inputs& in, int64_t index, AxisTables* tables, int64_t slot) const {
    const Box box = in.box(index);
    const int level = LevelOf(box, options_.strides);
    const float stride = options_.strides[level];
    const float mean = 1.0f / static_cast<float>(options_.ratio * options_.ratio);
    tables->Fill(2 * slot, box.y1, box.y2, stride, in.height(level), options_.aligned, mean);
    tables->Fill(2 * slot + 1, box.x1, box.x2, stride, in.width(level), options_.aligned, 1.0f);
    return level;
  }

  // A bin's cells in a map whose first row is `first_row` and last one `last_row - 1`; returns how many.
  int ListCells(const AxisTables& tables, int64_t slot, int by, int bx, const float* weights, int first_row,
                int last_row, int width, int channels, Cell* cells) const {
    const int ny = tables.count(2 * slot, by), nx = tables.count(2 * slot + 1, bx);
    const int* y = tables.cells(2 * slot, by);
    const int* x = tables.cells(2 * slot + 1, bx);
    int count = 0;
    for (int cy = 0; cy < ny; ++cy) {
      if (y[cy] < first_row || y[cy] >= last_row) continue;
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(y[cy] - first_row) * width;
      for (int cx = 0; cx < nx; ++cx) {
        cells[count++] = {(row + x[cx]) * channels, weights[cy * tables.width() + cx]};
      }
    }
    return count;
  }

  static ThreadPool* Pool(OpKernelContext* context) {
    return context->device()->tensorflow_cpu_worker_threads()->workers;
  }

  // Shards of boxes, as large as makes a thread worth its while; `cost` of a box in nanoseconds, roughly.
  static ThreadPool::SchedulingParams BoxByBox(int64_t cost) {
    return ThreadPool::SchedulingParams(ThreadPool::SchedulingStrategy::kAdaptive, cost, std::nullopt);
  }

  int max_cells() const { return 4 * options_.ratio * options_.ratio; }

  Options options_;
};

// --- forward ---------------------------------------------------------------------------------------------

template <typename T>
class ForwardOp : public RoiAlignOp {
 public:
  using RoiAlignOp::RoiAlignOp;

  void Compute(OpKernelContext* context) override {
    Inputs in;
    OP_REQUIRES_OK(context, Read(context, &in));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShape(in), &output));
    if (output->NumElements() == 0) return;
    T* out = output->flat<T>().data();
    const int size = options_.output_size, points = options_.points();
    std::optional<Resize> resize_y, resize_x;
    if (in.probabilities != nullptr) {
      resize_y.emplace(in.probabilities->dim_size(2), points);
      resize_x.emplace(in.probabilities->dim_size(3), points);
    }
    const std::vector<int64_t> order = CacheOrder(in);

    auto work = [&](int64_t begin, int64_t end) {
      AxisTables tables(2, options_);
      BinWeights bin_weights(tables, options_);
      std::vector<Cell> cells(max_cells());
      std::vector<float> at_samples(resize_y ? points * points : 0);
      std::vector<float> row(resize_y ? in.probabilities->dim_size(3) : 0);
      for (int64_t turn = begin; turn < end; ++turn) {
        const int64_t index = order[turn];
        const int level = FillTables(in, index, &tables, 0);
        const int height = in.height(level), width = in.width(level);
        const T* map = in.maps[level]->flat<T>().data() +
                       index / in.count * static_cast<int64_t>(height) * width * in.channels;
        const float* values = nullptr;
        if (resize_y) {
          ResizeMap(in.map_of(index), in.probabilities->dim_size(3), *resize_y, *resize_x, row.data(),
                    at_samples.data());
          values = at_samples.data();
        }
        T* bin = out + index * size * size * in.channels;
        for (int by = 0; by < size; ++by) {
          for (int bx = 0; bx < size; ++bx, bin += in.channels) {
            const float* weights = bin_weights.Get(0, by, bx, values);
            const int count =
                ListCells(tables, 0, by, bx, weights, 0, height, width, in.channels, cells.data());
            kernels_.gather(map, cells.data(), count, in.channels, bin);
          }
        }
      }
      EndStreams();
    };
    const int64_t cost = static_cast<int64_t>(size) * size * (100 + in.channels);
    Pool(context)->ParallelFor(in.all(), BoxByBox(cost), work);
  }

 private:
  Kernels<T> kernels_;
};

// --- gradient of the feature maps ------------------------------------------------------------------------

// Bytes of the float32 sums that one thread works on: they must stay in its own cache.
constexpr int64_t kBandBytes = 1 << 20;
constexpr int kBandRows = 16;
constexpr int kBandChannels = 256;

template <typename T>
class FeatureGradientOp : public RoiAlignOp {
 public:
  using RoiAlignOp::RoiAlignOp;

  void Compute(OpKernelContext* context) override {
    Inputs in;
    OP_REQUIRES_OK(context, Read(context, &in));
    const Tensor* upstream = nullptr;
    OP_REQUIRES_OK(context, context->input("upstream", &upstream));
    OP_REQUIRES_OK(context, CheckUpstream(in, *upstream));
    OpOutputList outputs;
    OP_REQUIRES_OK(context, context->output_list("gradients", &outputs));
    const int levels = in.maps.size();
    std::vector<T*> gradients(levels);
    for (int level = 0; level < levels; ++level) {
      Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, outputs.allocate(level, in.maps[level]->shape(), &gradient));
      gradients[level] = gradient->flat<T>().data();
    }

    // Axis tables and maps of all boxes, then the boxes of each image and level in their order.
    const int points = options_.points();
    AxisTables tables(2 * in.all(), options_);
    std::vector<float> at_samples(in.probabilities == nullptr ? 0 : in.all() * points * points);
    std::vector<int> level_of(in.all());
    std::optional<Resize> resize_y, resize_x;
    if (in.probabilities != nullptr) {
      resize_y.emplace(in.probabilities->dim_size(2), points);
      resize_x.emplace(in.probabilities->dim_size(3), points);
    }
    Pool(context)->ParallelFor(in.all(), BoxByBox(50 * points), [&](int64_t begin, int64_t end) {
      std::vector<float> row(resize_y ? in.probabilities->dim_size(3) : 0);
      for (int64_t index = begin; index < end; ++index) {
        level_of[index] = FillTables(in, index, &tables, index);
        if (!resize_y) continue;
        ResizeMap(in.map_of(index), in.probabilities->dim_size(3), *resize_y, *resize_x, row.data(),
                  &at_samples[index * points * points]);
      }
    });
    std::vector<std::vector<int64_t>> members(in.images * levels);
    for (int64_t index = 0; index < in.all(); ++index) {
      members[index / in.count * levels + level_of[index]].push_back(index);
    }

    // Every cell belongs to one unit, which adds what the boxes give it in their order.
    std::vector<Unit> units;
    for (int64_t image = 0; image < in.images; ++image) {
      for (int level = 0; level < levels; ++level) {
        const int height = in.height(level), width = in.width(level);
        if (height == 0 || width == 0) continue;
        const int64_t row_bytes = int64_t{4} * width * std::min(in.channels, kBandChannels);
        const int rows = std::clamp<int64_t>(kBandBytes / std::max<int64_t>(row_bytes, 1), 1, kBandRows);
        for (int row = 0; row < height; row += rows) {
          for (int channel = 0; channel < in.channels; channel += kBandChannels) {
            units.push_back({image, level, row, std::min(row + rows, height), channel,
                             std::min(channel + kBandChannels, in.channels)});
          }
        }
      }
    }
    const ThreadPool::SchedulingParams one_by_one(ThreadPool::SchedulingStrategy::kFixedBlockSize,
                                                  std::nullopt, 1);
    Pool(context)->ParallelFor(units.size(), one_by_one, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const Unit& u = units[unit];
        Run(in, tables, at_samples, members[u.image * levels + u.level], u, upstream->flat<T>().data(),
            gradients[u.level]);
      }
    });
  }

 private:
  // Rows and channels of one level of one image.
  struct Unit {
    int64_t image;
    int level, first_row, last_row, first_channel, last_channel;
  };

  void Run(const Inputs& in, const AxisTables& tables, const std::vector<float>& at_samples,
           const std::vector<int64_t>& boxes, const Unit& unit, const T* upstream, T* gradient) const {
    const int size = options_.output_size, points = options_.points();
    const int width = in.width(unit.level), channels = unit.last_channel - unit.first_channel;
    const int64_t cells_of_unit = static_cast<int64_t>(unit.last_row - unit.first_row) * width;
    std::vector<float> sums(cells_of_unit * channels, 0.0f);
    std::vector<Cell> cells(max_cells());
    BinWeights bin_weights(tables, options_);
    for (int64_t box : boxes) {
      const float* values = at_samples.empty() ? nullptr : &at_samples[box * points * points];
      for (int by = 0; by < size; ++by) {
        const int* y = tables.cells(2 * box, by);
        const int ny = tables.count(2 * box, by);
        const bool touched = std::any_of(
            y, y + ny, [&](int row) { return row >= unit.first_row && row < unit.last_row; });
        if (!touched) continue;
        const T* bin = upstream + (box * size + by) * size * in.channels + unit.first_channel;
        for (int bx = 0; bx < size; ++bx, bin += in.channels) {
          const float* weights = bin_weights.Get(box, by, bx, values);
          const int count = ListCells(tables, box, by, bx, weights, unit.first_row, unit.last_row, width,
                                      channels, cells.data());
          for (int c = 0; c < channels; c += 64 / sizeof(T)) Prefetch(bin + 2 * in.channels + c);
          kernels_.scatter(bin, cells.data(), count, channels, sums.data());
        }
      }
    }
    const int64_t first = (unit.image * in.height(unit.level) + unit.first_row) * width;
    T* to = gradient + first * in.channels + unit.first_channel;
    for (int64_t cell = 0; cell < cells_of_unit; ++cell) {
      kernels_.convert(&sums[cell * channels], channels, to + cell * in.channels);
    }
    EndStreams();
  }

  Kernels<T> kernels_;
};

// --- gradient of the probability maps --------------------------------------------------------------------

template <typename T>
class MapGradientOp : public RoiAlignOp {
 public:
  using RoiAlignOp::RoiAlignOp;

  void Compute(OpKernelContext* context) override {
    Inputs in;
    OP_REQUIRES_OK(context, Read(context, &in));
    const Tensor* upstream = nullptr;
    OP_REQUIRES_OK(context, context->input("upstream", &upstream));
    OP_REQUIRES_OK(context, CheckUpstream(in, *upstream));
    OP_REQUIRES(context, in.probabilities != nullptr,
                absl::InvalidArgumentError("RoIAlign: there are no maps to have a gradient"));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, in.probabilities->shape(), &output));
    if (output->NumElements() == 0) return;
    float* gradients = output->flat<float>().data();
    const T* from = upstream->flat<T>().data();
    const int size = options_.output_size, ratio = options_.ratio, points = options_.points();
    const Resize resize_y(in.probabilities->dim_size(2), points);
    const Resize resize_x(in.probabilities->dim_size(3), points);
    const std::vector<int64_t> order = CacheOrder(in);

    auto work = [&](int64_t begin, int64_t end) {
      AxisTables tables(2, options_);
      BinWeights bin_weights(tables, options_);
      std::vector<Cell> cells(max_cells());
      std::vector<float> dots(max_cells()), at_samples(points * points);
      for (int64_t turn = begin; turn < end; ++turn) {
        const int64_t index = order[turn];
        const int level = FillTables(in, index, &tables, 0);
        const int height = in.height(level), width = in.width(level);
        const T* map = in.maps[level]->flat<T>().data() +
                       index / in.count * static_cast<int64_t>(height) * width * in.channels;
        const T* bin = from + index * size * size * in.channels;
        for (int by = 0; by < size; ++by) {
          const int ny = tables.count(0, by);
          for (int bx = 0; bx < size; ++bx, bin += in.channels) {
            const int nx = tables.count(1, bx);
            const float* weights = bin_weights.Get(0, by, bx, nullptr);
            const int count =
                ListCells(tables, 0, by, bx, weights, 0, height, width, in.channels, cells.data());
            kernels_.dot(map, bin, cells.data(), count, in.channels, dots.data());
            for (int i = 0; i < ratio; ++i) {
              const float* wy = tables.weights(0, by, i);
              for (int j = 0; j < ratio; ++j) {
                const float* wx = tables.weights(1, bx, j);
                float sum = 0.0f;
                for (int cy = 0; cy < ny; ++cy) {
                  for (int cx = 0; cx < nx; ++cx) sum += wy[cy] * wx[cx] * dots[cy * nx + cx];
                }
                at_samples[(by * ratio + i) * points + bx * ratio + j] = sum;
              }
            }
          }
        }
        float* gradient = gradients + index * in.map_size();
        std::fill(gradient, gradient + in.map_size(), 0.0f);
        ResizeMapGradient(at_samples.data(), in.probabilities->dim_size(3), resize_y, resize_x, gradient);
      }
    };
    const int64_t cost = static_cast<int64_t>(size) * size * (100 + in.channels);
    Pool(context)->ParallelFor(in.all(), BoxByBox(cost), work);
  }

 private:
  Kernels<T> kernels_;
};

// --- registration ----------------------------------------------------------------------------------------

absl::Status ForwardShape(InferenceContext* context) {
  std::vector<ShapeHandle> maps, probabilities;
  TF_RETURN_IF_ERROR(context->input("features", &maps));
  TF_RETURN_IF_ERROR(context->input("probabilities", &probabilities));
  ShapeHandle boxes;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(maps.size()), 3, &boxes));
  DimensionHandle unused;
  TF_RETURN_IF_ERROR(context->WithValue(context->Dim(boxes, 2), 4, &unused));
  DimensionHandle images = context->Dim(boxes, 0), count = context->Dim(boxes, 1);
  DimensionHandle channels = context->UnknownDim();
  for (ShapeHandle map : maps) {
    TF_RETURN_IF_ERROR(context->WithRank(map, 4, &map));
    TF_RETURN_IF_ERROR(context->Merge(images, context->Dim(map, 0), &images));
    TF_RETURN_IF_ERROR(context->Merge(channels, context->Dim(map, 3), &channels));
  }
  for (ShapeHandle map : probabilities) {
    TF_RETURN_IF_ERROR(context->WithRank(map, 4, &map));
    TF_RETURN_IF_ERROR(context->Merge(images, context->Dim(map, 0), &images));
    TF_RETURN_IF_ERROR(context->Merge(count, context->Dim(map, 1), &count));
  }
  int size;
  TF_RETURN_IF_ERROR(context->GetAttr("output_size", &size));
  context->set_output(0, context->MakeShape({images, count, size, size, channels}));
  return absl::OkStatus();
}

absl::Status FeatureGradientShape(InferenceContext* context) {
  std::vector<ShapeHandle> maps;
  TF_RETURN_IF_ERROR(context->input("features", &maps));
  return context->set_output("gradients", maps);
}

absl::Status MapGradientShape(InferenceContext* context) {
  std::vector<ShapeHandle> probabilities;
  TF_RETURN_IF_ERROR(context->input("probabilities", &probabilities));
  context->set_output(0, probabilities.empty() ? context->UnknownShape() : probabilities[0]);
  return absl::OkStatus();
}

#define MRCNN_INPUTS(op)                   \
  REGISTER_OP(op)                          \
      .Input("features: levels * T")       \
      .Input("boxes: float")               \
      .Input("probabilities: maps * float") \
      .Attr("T: {float, bfloat16, half}")  \
      .Attr("levels: int >= 1")            \
      .Attr("maps: int >= 0")              \
      .Attr("strides: list(int) >= 1")     \
      .Attr("output_size: int >= 1")       \
      .Attr("sampling_ratio: int >= 1")    \
      .Attr("aligned: bool")

MRCNN_INPUTS("MrcnnRoiAlign").Output("output: T").SetShapeFn(ForwardShape);
// Two gradients, not one: a graph leaves out the one that nobody asks for.
MRCNN_INPUTS("MrcnnRoiAlignGrad")
    .Input("upstream: T")
    .Output("gradients: levels * T")
    .SetShapeFn(FeatureGradientShape);
MRCNN_INPUTS("MrcnnRoiAlignMapGrad")
    .Input("upstream: T")
    .Output("gradient: float")
    .SetShapeFn(MapGradientShape);

#define MRCNN_REGISTER(T)                                                                                \
  REGISTER_KERNEL_BUILDER(Name("MrcnnRoiAlign").Device(DEVICE_CPU).TypeConstraint<T>("T"), ForwardOp<T>); \
  REGISTER_KERNEL_BUILDER(Name("MrcnnRoiAlignGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"),            \
                          FeatureGradientOp<T>);                                                         \
  REGISTER_KERNEL_BUILDER(Name("MrcnnRoiAlignMapGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"),         \
                          MapGradientOp<T>);

MRCNN_REGISTER(float)
MRCNN_REGISTER(bfloat16)
MRCNN_REGISTER(half)

}  // namespace mrcnn
