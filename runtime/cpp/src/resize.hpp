#pragma once

#include <cstdint>
#include <vector>

#include "rows.hpp"

namespace cmt {

/// Filters of Pillow's: bicubic with a = -0.5, bilinear a triangle; both antialiased.
enum class Interpolation { bicubic, bilinear };

/// Pillow's resize, bit for bit, of the part that is kept.
///
/// As in Python: first to the new width, then to the new height, 8 bits in between; filter
/// weights are computed in double and rounded to 22 bits after the point.
class Resizer {
 public:
  explicit Resizer(Interpolation interpolation)
      : horizontal_(interpolation), vertical_(interpolation) {}

  /// One axis of the result: `count` pixels from `begin` on of `size`.
  struct Span {
    int size = 0;
    int begin = 0;
    int count = 0;
  };

  /// (rows.count, columns.count, 3), valid until the next call.
  const std::uint8_t* resize(const Part& image, const Span& columns, const Span& rows);

 private:
  /// The filter of one axis; computed anew only when the sizes change.
  struct Filter {
    explicit Filter(Interpolation wanted) : interpolation(wanted) {}

    Interpolation interpolation;
    int source = 0;
    Span span;
    std::size_t taps = 0;    ///< weights of each pixel, zeros at the end
    std::vector<int> first;  ///< first source pixel of each pixel
    std::vector<int> used;   ///< how many
    std::vector<std::int32_t> weights;
    std::vector<double> exact;  ///< of one pixel, before rounding

    void prepare(int source_size, const Span& wanted);
  };

  void filter_row(const std::uint8_t* source, std::uint8_t* result) const;
  void filter_column(const std::uint8_t* first_row, std::size_t stride, std::size_t row,
                     std::uint8_t* result);

  Filter horizontal_;
  Filter vertical_;
  std::vector<std::uint8_t> row_;      ///< converted to RGB
  std::vector<std::uint8_t> between_;  ///< rows filtered, columns not yet
  std::vector<std::uint8_t> result_;
  std::vector<std::int32_t> sums_;
};

}  // namespace cmt
