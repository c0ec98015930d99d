// Dense 3x3 convolutions of NHWC images with a padding of 1 and a stride of 1 or 2, and their two gradients, as foreign
// functions of XLA's CPU backend. `__init__.py` beside this file compiles it for the machine that it runs on.
//
// All three are direct: a tile of results stays in registers while a loop runs over what it sums, so each turn of that
// loop is one multiply-add for every register, a few broadcasts and a vector or two from memory. A tile is
// `places x vectors of channels` for the convolution and its input gradient, `input channels x vectors of channels` for
// the weight gradient. Images are copied one at a time into a zero-padded block, which fits the second-level cache for
// maps as small as CIFAR's, so no loop asks where the edges are. Threads take pieces of the batch from a counter. Results
// depend neither on which thread took what nor on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(GKD_VECTOR_BYTES)
constexpr int kVectorBytes = GKD_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Results in registers: eight multiply-adds hide the latency of one on processors that start two a cycle.
constexpr int kMostAtOnce = 6;
constexpr int kVectors = 2;
// What the first-level cache holds: of images, which a weight gradient passes over again and again, and of a kernel's
// weights, which every tile of an image does.
constexpr std::ptrdiff_t kNearImageBytes = 24 * 1024;
constexpr std::ptrdiff_t kNearKernelBytes = 18 * 1024;

// Pieces of a batch. Those of a weight gradient have sums of their own, which have to be added up: the wider the kernel,
// the fewer.
constexpr std::ptrdiff_t kPiecesOfImages = 64;
constexpr std::ptrdiff_t kMostSums = 16, kLeastSums = 4, kSumBytes = 4 * 1024 * 1024;

constexpr int kPatience = 100;  // turns that a thread waits for others before it sleeps

template <typename T, int kWidth>
struct Vector {
  typedef T Type __attribute__((vector_size(kWidth * sizeof(T))));
  static inline Type Load(const T* from) {
    Type value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  static inline void Store(T* to, Type value) { std::memcpy(to, &value, sizeof(value)); }
};

struct Shape {
  std::ptrdiff_t batch, height, width, channels;
  std::ptrdiff_t Image() const { return height * width * channels; }
};

// One image with a frame of zeros, one position wide; the frame is written once and never touched again.
template <typename T>
class Framed {
 public:
  explicit Framed(const Shape& shape)
      : row_((shape.width + 2) * shape.channels), shape_(shape), data_((shape.height + 2) * row_, T(0)) {}

  void Copy(const T* image) {
    const std::ptrdiff_t length = shape_.width * shape_.channels;
    for (std::ptrdiff_t i = 0; i < shape_.height; ++i) {
      std::memcpy(data_.data() + (i + 1) * row_ + shape_.channels, image + i * length, length * sizeof(T));
    }
  }
  // Of the position (i, j) of the image, where -1 and the side are in the frame.
  const T* At(std::ptrdiff_t i, std::ptrdiff_t j) const {
    return data_.data() + (i + 1) * row_ + (j + 1) * shape_.channels;
  }
  std::ptrdiff_t row() const { return row_; }

 private:
  std::ptrdiff_t row_;
  Shape shape_;
  std::vector<T> data_;
};

// What a result sums over: a position of the framed image, as a distance from the result's own, and a tap of the kernel.
struct Tap {
  std::ptrdiff_t offset;
  int index;
};

// Where results stand: for each, how far its position in the framed image and its own place are from their first.
struct Places {
  std::vector<std::ptrdiff_t> in, out;
};

// Results at `kPositions` places, `kCount` vectors of channels each. `weights` holds, for each tap and each of
// `channels` input channels, these results' weights one behind the other. Unless `kFresh`, adds to what stands there.
template <typename T, int kWidth, int kCount, int kPositions, bool kFresh>
inline void Tile(const T* in, const std::ptrdiff_t* in_places, const std::vector<Tap>& taps, const T* weights,
                 std::ptrdiff_t channels, T* out, const std::ptrdiff_t* out_places) {
  using V = Vector<T, kWidth>;
  typename V::Type sum[kPositions][kCount] = {};  // always from zero: loaded ones do not stay in registers (GCC 12)
  for (const Tap& tap : taps) {
    const T* x[kPositions];
#pragma GCC unroll 8
    for (int j = 0; j < kPositions; ++j) x[j] = in + in_places[j] + tap.offset;
    const T* w = weights + tap.index * channels * kCount * kWidth;
    for (std::ptrdiff_t c = 0; c < channels; ++c, w += kCount * kWidth) {
      typename V::Type vector[kCount];
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) vector[v] = V::Load(w + v * kWidth);
#pragma GCC unroll 8
      for (int j = 0; j < kPositions; ++j) {
        const T value = x[j][c];
#pragma GCC unroll 8
        for (int v = 0; v < kCount; ++v) sum[j][v] += value * vector[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kPositions; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) {
      T* to = out + out_places[j] + v * kWidth;
      V::Store(to, kFresh ? sum[j][v] : V::Load(to) + sum[j][v]);
    }
  }
}

// Calls `function` with constants that add up to `count`, the largest first: so many results at once.
template <typename Function>
inline void InSteps(std::ptrdiff_t count, const Function& function) {
  for (; count >= kMostAtOnce + 4 || count == kMostAtOnce; count -= kMostAtOnce) {
    function(std::integral_constant<int, kMostAtOnce>());
  }
  for (; count >= 4; count -= 4) function(std::integral_constant<int, 4>());
  if (count == 3) function(std::integral_constant<int, 3>());
  if (count == 2) function(std::integral_constant<int, 2>());
  if (count == 1) function(std::integral_constant<int, 1>());
}

// Results at all places.
template <typename T, int kWidth, int kCount, bool kFresh>
void Tiles(const T* in, const Places& places, const std::vector<Tap>& taps, const T* weights, std::ptrdiff_t channels,
           T* out) {
  std::ptrdiff_t place = 0;
  InSteps(places.in.size(), [&](auto positions) {
    Tile<T, kWidth, kCount, positions(), kFresh>(in, &places.in[place], taps, weights, channels, out,
                                                 &places.out[place]);
    place += positions();
  });
}

// A kernel in the order in which tiles read it: results' channels in groups of `kGroup`, input channels in parts that
// stay in the first-level cache, [groups, parts, 9, channels of the part, kGroup].
template <typename T, int kGroup>
class Packed {
 public:
  // From [3 3 c k]; `transpose` exchanges the channels.
  Packed(const T* kernel, std::ptrdiff_t c, std::ptrdiff_t k, bool transpose)
      : in_(transpose ? k : c), out_(transpose ? c : k), data_(9 * c * k) {
    T* to = data_.data();
    for (std::ptrdiff_t group = 0; group < out_; group += kGroup) {
      for (std::ptrdiff_t part = 0; part < in_; part += kPart) {
        for (std::ptrdiff_t tap = 0; tap < 9; ++tap) {
          const T* from = kernel + tap * c * k;
          for (std::ptrdiff_t i = part; i < std::min(part + kPart, in_); ++i, to += kGroup) {
            for (int o = 0; o < kGroup; ++o) to[o] = transpose ? from[(group + o) * k + i] : from[i * k + group + o];
          }
        }
      }
    }
  }

  // Calls `function(result channel, input channel, input channels, weights)` for every group and part.
  template <typename Function>
  void ForEach(const Function& function) const {
    const T* weights = data_.data();
    for (std::ptrdiff_t group = 0; group < out_; group += kGroup) {
      for (std::ptrdiff_t part = 0; part < in_; part += kPart) {
        const std::ptrdiff_t channels = std::min(kPart, in_ - part);
        function(group, part, channels, weights);
        weights += 9 * channels * kGroup;
      }
    }
  }

 private:
  static constexpr std::ptrdiff_t kPart = kNearKernelBytes / (9 * kGroup * sizeof(T));
  std::ptrdiff_t in_, out_;
  std::vector<T> data_;
};

// Calls `work(piece)` for every piece, on this thread and on those of the pool that come in time. A task that comes late
// finds nothing to do, so nobody waits for it, and a pool whose threads all wait here cannot come to a halt. Throws
// bad_alloc once all are done, if one of them did.
class Pieces {
 public:
  template <typename Work>
  static void ForEach(ffi::ThreadPool& pool, std::ptrdiff_t count, const Work& work) {
    auto pieces = std::make_shared<Pieces>();
    auto take = [pieces, count, work = &work] { pieces->Take(count, *work); };
    const std::int64_t helpers = std::min<std::int64_t>(pool.num_threads(), count) - 1;
    for (std::int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(take)(take));
    take();
    pieces->Wait(count);
    if (pieces->failed_) throw std::bad_alloc();
  }

 private:
  // `work` is gone once all pieces are done: who finds none left must not touch it.
  template <typename Work>
  void Take(std::ptrdiff_t count, const Work& work) {
    for (std::ptrdiff_t piece; (piece = next_.fetch_add(1)) < count;) {
      try {
        work(piece);
      } catch (const std::bad_alloc&) {
        failed_ = true;
      }
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        std::lock_guard<std::mutex> lock(mutex_);
        all_done_.notify_all();
      }
    }
  }

  void Wait(std::ptrdiff_t count) {
    const auto all_done = [&] { return done_.load(std::memory_order_acquire) >= count; };
    for (int turn = 0; turn < kPatience; ++turn) {
      if (all_done()) return;
      std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, all_done);
  }

  std::atomic<std::ptrdiff_t> next_{0}, done_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// A batch in pieces, each of neighbours.
struct Split {
  Split(std::ptrdiff_t images, std::ptrdiff_t most) : images(images), pieces(std::min(most, images)) {}
  std::ptrdiff_t First(std::ptrdiff_t piece) const { return piece * images / pieces; }

  std::ptrdiff_t images, pieces;
};

// Results that sum over the same taps.
struct Phase {
  std::vector<Tap> taps;
  Places places;
};

// The results of every phase of every image.
template <typename T, int kWidth, int kCount>
void SumTaps(ffi::ThreadPool& pool, const T* from, const Shape& in, const Packed<T, kWidth * kCount>& packed,
             const std::vector<Phase>& phases, T* to, const Shape& out) {
  const Split split(in.batch, kPiecesOfImages);
  Pieces::ForEach(pool, split.pieces, [&](std::ptrdiff_t piece) {
    Framed<T> framed(in);
    for (std::ptrdiff_t b = split.First(piece); b < split.First(piece + 1); ++b) {
      framed.Copy(from + b * in.Image());
      packed.ForEach([&](std::ptrdiff_t k, std::ptrdiff_t c, std::ptrdiff_t channels, const T* weights) {
        const auto tiles = c == 0 ? Tiles<T, kWidth, kCount, true> : Tiles<T, kWidth, kCount, false>;
        for (const Phase& phase : phases) {
          tiles(framed.At(0, 0) + c, phase.places, phase.taps, weights, channels, to + b * out.Image() + k);
        }
      });
    }
  });
}

template <typename T, int kWidth, int kCount, int kStride>
void Convolve(ffi::ThreadPool& pool, const T* x, const Shape& in, const T* kernel, T* y, const Shape& out) {
  const std::ptrdiff_t row = (in.width + 2) * in.channels;
  Phase all;
  for (int p = 0; p < 3; ++p) {
    for (int q = 0; q < 3; ++q) all.taps.push_back({(p - 1) * row + (q - 1) * in.channels, 3 * p + q});
  }
  for (std::ptrdiff_t i = 0; i < out.height; ++i) {
    for (std::ptrdiff_t j = 0; j < out.width; ++j) {
      all.places.in.push_back(kStride * (i * row + j * in.channels));
      all.places.out.push_back((i * out.width + j) * out.channels);
    }
  }
  const Packed<T, kWidth * kCount> packed(kernel, in.channels, out.channels, false);
  SumTaps<T, kWidth, kCount>(pool, x, in, packed, {all}, y, out);
}

template <typename T, int kWidth, int kCount, int kStride>
void InputGradient(ffi::ThreadPool& pool, const T* dy, const Shape& out, const T* kernel, T* dx, const Shape& in) {
  const std::ptrdiff_t row = (out.width + 2) * out.channels;
  // x[stride·i + p - 1] met the tap p at dy[i]: for each phase of a position of x, the taps that met it and where.
  std::vector<Phase> phases(kStride * kStride);
  for (int y = 0; y < kStride; ++y) {
    for (int x = 0; x < kStride; ++x) {
      Phase& phase = phases[y * kStride + x];
      for (int p = (y + 1) % kStride; p < 3; p += kStride) {
        for (int q = (x + 1) % kStride; q < 3; q += kStride) {
          const std::ptrdiff_t down = (y + 1 - p) / kStride, right = (x + 1 - q) / kStride;
          phase.taps.push_back({down * row + right * out.channels, 3 * p + q});
        }
      }
      for (std::ptrdiff_t i = 0; i < out.height; ++i) {
        for (std::ptrdiff_t j = 0; j < out.width; ++j) {
          phase.places.in.push_back(i * row + j * out.channels);
          phase.places.out.push_back(((kStride * i + y) * in.width + kStride * j + x) * in.channels);
        }
      }
    }
  }
  const Packed<T, kWidth * kCount> packed(kernel, in.channels, out.channels, true);
  SumTaps<T, kWidth, kCount>(pool, dy, out, packed, phases, dx, in);
}

// Adds, to `kChannels` rows of a group of the kernel's gradient at one tap, what `rows` rows of an image contribute.
template <typename T, int kWidth, int kCount, int kChannels>
inline void Product(const T* x, std::ptrdiff_t x_row, std::ptrdiff_t x_step, const T* dy, std::ptrdiff_t dy_row,
                    std::ptrdiff_t dy_step, std::ptrdiff_t rows, std::ptrdiff_t columns, T* out) {
  constexpr int kGroup = kWidth * kCount;
  using V = Vector<T, kWidth>;
  typename V::Type sum[kChannels][kCount];
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) sum[c][v] = V::Load(out + c * kGroup + v * kWidth);
  }
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    const T* position = x + i * x_row;
    const T* gradient = dy + i * dy_row;
    for (std::ptrdiff_t j = 0; j < columns; ++j, position += x_step, gradient += dy_step) {
      typename V::Type vector[kCount];
#pragma GCC unroll 8
      for (int v = 0; v < kCount; ++v) vector[v] = V::Load(gradient + v * kWidth);
#pragma GCC unroll 8
      for (int c = 0; c < kChannels; ++c) {
        const T value = position[c];
#pragma GCC unroll 8
        for (int v = 0; v < kCount; ++v) sum[c][v] += value * vector[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) V::Store(out + c * kGroup + v * kWidth, sum[c][v]);
  }
}

template <typename T, int kWidth, int kCount, int kStride>
void WeightGradient(ffi::ThreadPool& pool, const T* x, const Shape& in, const T* dy, const Shape& out, T* dk) {
  constexpr int kGroup = kWidth * kCount;
  const std::ptrdiff_t c_in = in.channels, k_out = out.channels, size = 9 * c_in * k_out;
  const std::ptrdiff_t row_bytes = (kStride * (in.width + 2) * c_in + out.width * k_out) * sizeof(T);
  const std::ptrdiff_t near = std::clamp<std::ptrdiff_t>(kNearImageBytes / row_bytes, 1, out.height);
  std::ptrdiff_t most = kMostSums;
  while (most > kLeastSums && most * size * static_cast<std::ptrdiff_t>(sizeof(T)) > kSumBytes) most /= 2;
  const Split split(in.batch, most);
  const std::unique_ptr<T[]> sums(new T[split.pieces * size]);
  Pieces::ForEach(pool, split.pieces, [&](std::ptrdiff_t piece) {
    Framed<T> framed(in);
    T* own = sums.get() + piece * size;
    std::fill_n(own, size, T(0));
    for (std::ptrdiff_t b = split.First(piece); b < split.First(piece + 1); ++b) {
      framed.Copy(x + b * in.Image());
      for (std::ptrdiff_t top = 0; top < out.height; top += near) {
        const std::ptrdiff_t rows = std::min(near, out.height - top);
        const T* gradient = dy + b * out.Image() + top * out.width * k_out;
        for (int p = 0; p < 3; ++p) {
          for (int q = 0; q < 3; ++q) {
            const T* position = framed.At(kStride * top + p - 1, q - 1);
            T* sum = own + (3 * p + q) * c_in * k_out;  // [groups, c, kGroup], read and written in this order
            for (std::ptrdiff_t k = 0; k < k_out; k += kGroup) {
              std::ptrdiff_t c = 0;
              InSteps(c_in, [&](auto channels) {
                Product<T, kWidth, kCount, channels()>(position + c, kStride * framed.row(), kStride * c_in,
                                                       gradient + k, out.width * k_out, k_out, rows, out.width,
                                                       sum);
                c += channels();
                sum += channels() * kGroup;
              });
            }
          }
        }
      }
    }
  });
  Pieces::ForEach(pool, 9, [&](std::ptrdiff_t tap) {
    const T* sum = sums.get() + tap * c_in * k_out;
    for (std::ptrdiff_t k = 0; k < k_out; k += kGroup) {
      for (std::ptrdiff_t c = 0; c < c_in; ++c, sum += kGroup) {
        T* to = dk + (tap * c_in + c) * k_out + k;
        std::copy_n(sum, kGroup, to);
        for (std::ptrdiff_t piece = 1; piece < split.pieces; ++piece) {
          for (int i = 0; i < kGroup; ++i) to[i] += sum[piece * size + i];
        }
      }
    }
  });
}

// Calls `function` with the vectors that `channels` of results come in (width, vectors at once) and the stride.
template <typename T, typename Function>
ffi::Error Dispatch(std::ptrdiff_t channels, std::int64_t stride, const Function& function) {
  constexpr int kFull = kVectorBytes / sizeof(T), kLeast = std::min<int>(kFull, 32 / sizeof(T));
  auto strided = [&](auto width, auto count) {
    if (stride == 1) function(width, count, std::integral_constant<int, 1>());
    if (stride == 2) function(width, count, std::integral_constant<int, 2>());
  };
  try {
    if (channels % (kVectors * kFull) == 0) {
      strided(std::integral_constant<int, kFull>(), std::integral_constant<int, kVectors>());
    } else if (channels % kFull == 0) {
      strided(std::integral_constant<int, kFull>(), std::integral_constant<int, 1>());
    } else if (channels % kLeast == 0) {
      strided(std::integral_constant<int, kLeast>(), std::integral_constant<int, 1>());
    } else {
      return ffi::Error::InvalidArgument("the number of channels must be a multiple of 8");
    }
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory is left for a convolution");
  }
  return ffi::Error::Success();
}

template <typename Buffer>
Shape ShapeOf(const Buffer& buffer) {
  const auto sizes = buffer.dimensions();
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

// Whether x, y = conv(x, kernel) and the kernel fit one another.
template <typename Kernel>
bool Fit(const Shape& x, const Kernel& kernel, const Shape& y, std::int64_t stride) {
  const auto sizes = kernel.dimensions();
  return (stride == 1 || stride == 2) && x.batch == y.batch && x.height == stride * y.height &&
         x.width == stride * y.width && sizes[0] == 3 && sizes[1] == 3 && sizes[2] == x.channels &&
         sizes[3] == y.channels && x.Image() > 0 && y.Image() > 0 && x.batch > 0;
}

ffi::Error DoNotFit() { return ffi::Error::InvalidArgument("images, kernel and stride do not fit one another"); }

template <ffi::DataType kType>
using Buffer = ffi::Buffer<kType, 4>;
template <ffi::DataType kType>
using Result = ffi::Result<Buffer<kType>>;

template <ffi::DataType kType>
ffi::Error ConvolveCall(ffi::ThreadPool pool, Buffer<kType> x, Buffer<kType> kernel, Result<kType> y,
                        std::int64_t stride) {
  using T = ffi::NativeType<kType>;
  const Shape in = ShapeOf(x), out = ShapeOf(*y);
  if (!Fit(in, kernel, out, stride)) return DoNotFit();
  return Dispatch<T>(out.channels, stride, [&](auto width, auto count, auto step) {
    Convolve<T, width(), count(), step()>(pool, x.typed_data(), in, kernel.typed_data(), y->typed_data(), out);
  });
}

template <ffi::DataType kType>
ffi::Error InputGradientCall(ffi::ThreadPool pool, Buffer<kType> dy, Buffer<kType> kernel, Result<kType> dx,
                             std::int64_t stride) {
  using T = ffi::NativeType<kType>;
  const Shape out = ShapeOf(dy), in = ShapeOf(*dx);
  if (!Fit(in, kernel, out, stride)) return DoNotFit();
  return Dispatch<T>(in.channels, stride, [&](auto width, auto count, auto step) {
    InputGradient<T, width(), count(), step()>(pool, dy.typed_data(), out, kernel.typed_data(), dx->typed_data(), in);
  });
}

template <ffi::DataType kType>
ffi::Error WeightGradientCall(ffi::ThreadPool pool, Buffer<kType> x, Buffer<kType> dy, Result<kType> dk,
                              std::int64_t stride) {
  using T = ffi::NativeType<kType>;
  const Shape in = ShapeOf(x), out = ShapeOf(dy);
  if (!Fit(in, *dk, out, stride)) return DoNotFit();
  return Dispatch<T>(out.channels, stride, [&](auto width, auto count, auto step) {
    WeightGradient<T, width(), count(), step()>(pool, x.typed_data(), in, dy.typed_data(), out, dk->typed_data());
  });
}

template <ffi::DataType kType>
auto Binding() {
  return ffi::Ffi::Bind()
      .template Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<kType>>()
      .template Arg<Buffer<kType>>()
      .template Ret<Buffer<kType>>()
      .template Attr<std::int64_t>("stride");
}

}  // namespace

#define GKD_CONVOLUTION(name, function)                                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_float32, function<ffi::F32>, Binding<ffi::F32>());                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_float64, function<ffi::F64>, Binding<ffi::F64>())

GKD_CONVOLUTION(gkd_convolution, ConvolveCall);
GKD_CONVOLUTION(gkd_input_gradient, InputGradientCall);
GKD_CONVOLUTION(gkd_weight_gradient, WeightGradientCall);
