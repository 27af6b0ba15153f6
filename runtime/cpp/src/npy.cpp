#include "npy.hpp"

#include <cmt/error.hpp>
#include <cstring>
#include <limits>
#include <string_view>

namespace cmt {
namespace {

[[noreturn]] void refuse(const std::string& name) {
  throw InputError(name + " is no NumPy array of the kind expected here: export the bundle again");
}

/// What follows `key` in a header such as {'descr': '|u1', 'fortran_order': False, 'shape': (8,), }
std::string_view after(std::string_view header, std::string_view key, const std::string& name) {
  const std::size_t at = header.find(key);
  if (at == std::string_view::npos) refuse(name);
  return header.substr(at + key.size());
}

std::vector<std::size_t> parse_shape(std::string_view text, const std::string& name) {
  std::vector<std::size_t> shape;
  std::size_t side = 0;
  bool digits = false;
  for (const char c : text.substr(0, text.find(')'))) {
    if (c >= '0' && c <= '9') {
      side = side * 10 + static_cast<std::size_t>(c - '0');
      digits = true;
      if (side > std::numeric_limits<std::uint32_t>::max()) refuse(name);
    } else if (c == ',' && digits) {
      shape.push_back(side);
      side = 0;
      digits = false;
    } else if (c != ' ') {
      refuse(name);
    }
  }
  if (digits) shape.push_back(side);
  return shape;
}

template <typename T>
Array<T> parse(const std::string& content, std::string_view type, const std::string& name) {
  constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
  const std::string_view text(content);
  if (text.size() < 10 || text.substr(0, 8) != kMagic) refuse(name);
  const std::size_t length =
      static_cast<std::uint8_t>(text[8]) + 256U * static_cast<std::uint8_t>(text[9]);
  const std::string_view header = text.substr(10, length);
  if (header.size() != length) refuse(name);
  if (after(header, "'descr': '", name).substr(0, type.size()) != type) refuse(name);
  if (after(header, "'fortran_order': ", name).substr(0, 5) != "False") refuse(name);
  Array<T> array;
  array.shape = parse_shape(after(header, "'shape': (", name), name);
  const std::string_view body = text.substr(10 + length);
  std::size_t count = body.size() / sizeof(T);
  for (const std::size_t side : array.shape) {
    if (side == 0 || count % side != 0) refuse(name);
    count /= side;
  }
  if (count != 1 || body.size() % sizeof(T) != 0) refuse(name);
  array.values.resize(body.size() / sizeof(T));
  std::memcpy(array.values.data(), body.data(), body.size());
  return array;
}

}  // namespace

Array<std::uint8_t> parse_npy_bytes(const std::string& content, const std::string& name) {
  return parse<std::uint8_t>(content, "|u1", name);
}

Array<float> parse_npy_floats(const std::string& content, const std::string& name) {
  return parse<float>(content, "<f4", name);  // as all CPUs that OpenVINO knows store it
}

}  // namespace cmt
