#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cmt {

/// A NumPy array in C order.
template <typename T>
struct Array {
  std::vector<std::size_t> shape;
  std::vector<T> values;
};

/// A .npy file of uint8, int32 or finite float32, as NumPy writes them by default (version 1.0, the
/// header's wording too, nothing behind the values); `name` stands in the message of an InputError.
Array<std::uint8_t> parse_npy_bytes(const std::string& content, const std::string& name);
Array<std::int32_t> parse_npy_ints(const std::string& content, const std::string& name);
Array<float> parse_npy_floats(const std::string& content, const std::string& name);

}  // namespace cmt
