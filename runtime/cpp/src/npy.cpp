#include "npy.hpp"

#include <algorithm>
#include <cmath>
#include <cmt/error.hpp>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

namespace cmt {
namespace {

[[noreturn]] void refuse_array(const std::string& name) {
  throw InputError(name + " is no NumPy array of the kind expected here: export the bundle again");
}

/// The sides in a text such as "8, 32, 32, 3)", which may be followed by anything.
std::vector<std::size_t> parse_sides(std::string_view text, const std::string& name) {
  std::vector<std::size_t> sides;
  std::size_t side = 0;
  for (const char c : text.substr(0, text.find(')'))) {
    if (c >= '0' && c <= '9') {
      side = side * 10 + static_cast<std::size_t>(c - '0');
      if (side > std::numeric_limits<std::uint32_t>::max()) refuse_array(name);
    } else if (c == ',') {
      sides.push_back(std::exchange(side, 0));
    }
  }
  if (side > 0) sides.push_back(side);
  return sides;
}

/// What NumPy writes of an array in C order, but for the blanks that fill the header up.
std::string usual_header(std::string_view type, const std::vector<std::size_t>& shape) {
  std::string sides;
  for (const std::size_t side : shape) sides += (sides.empty() ? "" : ", ") + std::to_string(side);
  if (shape.size() == 1) sides += ",";
  return "{'descr': '" + std::string(type) + "', 'fortran_order': False, 'shape': (" + sides +
         "), }";
}

/// The shape that a header of this type states. One that NumPy would not have written like this is
/// refused, so that all readers take the same files.
std::vector<std::size_t> parse_header(std::string_view header, std::string_view type,
                                      const std::string& name) {
  const std::string begin = usual_header(type, {});
  const std::size_t at = begin.find("), }");
  if (header.substr(0, at) != begin.substr(0, at)) refuse_array(name);
  std::vector<std::size_t> shape = parse_sides(header.substr(at), name);
  const std::string usual = usual_header(type, shape);
  const std::size_t filled = header.find_last_not_of(' ', header.size() - 2) + 1;
  if (header.back() != '\n' || header.substr(0, filled) != usual || shape.empty())
    refuse_array(name);
  return shape;
}

template <typename T>
Array<T> parse(const std::string& content, std::string_view type, const std::string& name) {
  constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
  const std::string_view text(content);
  if (text.size() < 10 || text.substr(0, 8) != kMagic) refuse_array(name);
  const std::size_t length =
      static_cast<std::uint8_t>(text[8]) + 256U * static_cast<std::uint8_t>(text[9]);
  const std::string_view header = text.substr(10, length);
  if (header.size() != length || length < 2) refuse_array(name);
  Array<T> array;
  array.shape = parse_header(header, type, name);
  const std::string_view body = text.substr(10 + length);
  std::size_t count = body.size() / sizeof(T);
  for (const std::size_t side : array.shape) {
    if (side == 0 || count % side != 0) refuse_array(name);
    count /= side;
  }
  if (count != 1 || body.size() % sizeof(T) != 0) refuse_array(name);
  array.values.resize(body.size() / sizeof(T));
  std::memcpy(array.values.data(), body.data(), body.size());
  return array;
}

}  // namespace

Array<std::uint8_t> parse_npy_bytes(const std::string& content, const std::string& name) {
  return parse<std::uint8_t>(content, "|u1", name);
}

Array<std::int32_t> parse_npy_ints(const std::string& content, const std::string& name) {
  return parse<std::int32_t>(content, "<i4", name);
}

Array<float> parse_npy_floats(const std::string& content, const std::string& name) {
  Array<float> array = parse<float>(content, "<f4", name);  // as all CPUs that OpenVINO knows
  const auto is_finite = [](float value) { return std::isfinite(value); };
  if (!std::all_of(array.values.begin(), array.values.end(), is_finite)) {
    throw InputError(name + " holds NaN or infinity: export the bundle again");
  }
  return array;
}

}  // namespace cmt
