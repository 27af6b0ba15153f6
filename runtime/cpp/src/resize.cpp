#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cmt {
namespace {

constexpr int kPrecision = 32 - 8 - 2;
constexpr std::int32_t kHalf = 1 << (kPrecision - 1);

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double bilinear(double x) { return std::max(1 - std::abs(x), 0.0); }

std::uint8_t to_grey_level(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
}

bool operator==(const Resizer::Span& a, const Resizer::Span& b) {
  return a.size == b.size && a.begin == b.begin && a.count == b.count;
}

}  // namespace

void Resizer::Filter::prepare(int source_size, const Span& wanted) {
  if (source == source_size && span == wanted) return;
  source = source_size;
  span = wanted;
  // The expressions follow Pillow's Resample.c, whose rounding they must repeat.
  const double scale = static_cast<double>(source) / span.size;
  const double filter_scale = std::max(scale, 1.0);
  const bool is_bilinear = interpolation == Interpolation::bilinear;
  const double support = (is_bilinear ? 1 : 2) * filter_scale;
  const double step = 1 / filter_scale;
  const auto count = static_cast<std::size_t>(span.count);
  taps = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
  first.resize(count);
  used.resize(count);
  weights.assign(count * taps, 0);
  exact.resize(taps);
  for (std::size_t i = 0; i < count; ++i) {
    const double center = (span.begin + static_cast<int>(i) + 0.5) * scale;
    // NOLINTBEGIN(bugprone-incorrect-roundings): negative halves are cut off all the same
    const int low = std::max(static_cast<int>(center - support + 0.5), 0);
    const int high = std::min(static_cast<int>(center + support + 0.5), source);
    // NOLINTEND(bugprone-incorrect-roundings)
    first[i] = low;
    used[i] = high - low;
    double sum = 0;
    for (int x = 0; x < used[i]; ++x) {
      const double at = (x + low - center + 0.5) * step;
      const double weight = is_bilinear ? bilinear(at) : bicubic(at);
      exact[static_cast<std::size_t>(x)] = weight;
      sum += weight;
    }
    for (std::size_t x = 0; x < static_cast<std::size_t>(used[i]); ++x) {
      const double weight = sum == 0 ? exact[x] : exact[x] / sum;
      weights[i * taps + x] =
          static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kPrecision));
    }
  }
}

void Resizer::filter_row(const std::uint8_t* source, std::uint8_t* result) const {
  const Filter& filter = horizontal_;
  for (std::size_t i = 0; i < filter.first.size(); ++i) {
    const std::uint8_t* pixel = source + 3 * static_cast<std::size_t>(filter.first[i]);
    const std::int32_t* weight = filter.weights.data() + i * filter.taps;
    std::int32_t red = kHalf;
    std::int32_t green = kHalf;
    std::int32_t blue = kHalf;
    for (int x = 0; x < filter.used[i]; ++x, pixel += 3) {
      red += pixel[0] * weight[x];
      green += pixel[1] * weight[x];
      blue += pixel[2] * weight[x];
    }
    result[3 * i] = to_grey_level(red);
    result[3 * i + 1] = to_grey_level(green);
    result[3 * i + 2] = to_grey_level(blue);
  }
}

void Resizer::filter_column(const std::uint8_t* first_row, std::size_t stride, std::size_t row,
                            std::uint8_t* result) {
  const Filter& filter = vertical_;
  const std::int32_t* weight = filter.weights.data() + row * filter.taps;
  std::fill(sums_.begin(), sums_.end(), kHalf);
  for (int y = 0; y < filter.used[row]; ++y) {
    const std::uint8_t* source = first_row + static_cast<std::size_t>(y) * stride;
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += source[i] * weight[y];
  }
  for (std::size_t i = 0; i < sums_.size(); ++i) result[i] = to_grey_level(sums_[i]);
}

const std::uint8_t* Resizer::resize(const Part& image, const Span& columns, const Span& rows) {
  const std::size_t row_bytes = 3 * static_cast<std::size_t>(columns.count);
  const auto row_count = static_cast<std::size_t>(rows.count);
  const bool same_height = rows.size == image.height;
  int first_row = rows.begin;
  int last_row = rows.begin + rows.count;
  if (!same_height) {
    vertical_.prepare(image.height, rows);
    first_row = vertical_.first.front();
    last_row = vertical_.first.back() + vertical_.used.back();
  }
  // Pillow leaves an axis alone whose size stays.
  if (columns.size != image.width) horizontal_.prepare(image.width, columns);
  between_.resize(static_cast<std::size_t>(last_row - first_row) * row_bytes);
  for (int y = first_row; y < last_row; ++y) {
    const std::uint8_t* source = rgb_row(image, y, row_);
    std::uint8_t* filtered = between_.data() + static_cast<std::size_t>(y - first_row) * row_bytes;
    if (columns.size == image.width) {
      std::memcpy(filtered, source + 3 * static_cast<std::size_t>(columns.begin), row_bytes);
    } else {
      filter_row(source, filtered);
    }
  }
  if (same_height) return between_.data();
  sums_.resize(row_bytes);
  result_.resize(row_count * row_bytes);
  for (std::size_t y = 0; y < row_count; ++y) {
    const auto begin = static_cast<std::size_t>(vertical_.first[y] - first_row);
    filter_column(between_.data() + begin * row_bytes, row_bytes, y,
                  result_.data() + y * row_bytes);
  }
  return result_.data();
}

}  // namespace cmt
