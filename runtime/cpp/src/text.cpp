#include "text.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

namespace cmt {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Range {
  char32_t first;
  char32_t last;
};

// Python's str.isspace.
constexpr std::array<Range, 10> kBlanks{{{0x9, 0xD},
                                         {0x1C, 0x20},
                                         {0x85, 0x85},
                                         {0xA0, 0xA0},
                                         {0x1680, 0x1680},
                                         {0x2000, 0x200A},
                                         {0x2028, 0x2029},
                                         {0x202F, 0x202F},
                                         {0x205F, 0x205F},
                                         {0x3000, 0x3000}}};

// What of Unicode 14 is assigned and not printable to Python's str.isprintable: control and format
// characters, surrogates, private use. What a later Unicode assigns is taken for printable.
constexpr std::array<Range, 25> kInvisible{{
    {0x0, 0x8},          {0xE, 0x1B},        {0x7F, 0x84},       {0x86, 0x9F},
    {0xAD, 0xAD},        {0x600, 0x605},     {0x61C, 0x61C},     {0x6DD, 0x6DD},
    {0x70F, 0x70F},      {0x890, 0x891},     {0x8E2, 0x8E2},     {0x180E, 0x180E},
    {0x200B, 0x200F},    {0x202A, 0x202E},   {0x2060, 0x206F},   {0xD800, 0xF8FF},
    {0xFEFF, 0xFEFF},    {0xFFF9, 0xFFFB},   {0x110BD, 0x110BD}, {0x110CD, 0x110CD},
    {0x13430, 0x13438},  {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0001, 0xE007F},
    {0xF0000, 0x10FFFD},
}};

template <std::size_t N>
bool within(const std::array<Range, N>& ranges, char32_t point) {
  const auto after =
      std::upper_bound(ranges.begin(), ranges.end(), point,
                       [](char32_t value, const Range& range) { return value < range.first; });
  return after != ranges.begin() && point <= (after - 1)->last;
}

/// The first character of a text; `size` is 0 where its first byte begins none.
struct Character {
  char32_t point = 0;
  std::size_t size = 0;
};

Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < size) return {};
  char32_t point = lead & (0x7FU >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    point = point << 6 | (byte(i) & 0x3FU);
  }
  constexpr std::array<char32_t, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xD800 && point < 0xE000;
  if (point < kLeast[size] || point > 0x10FFFF || surrogate) return {};
  return {point, size};
}

}  // namespace

std::wstring to_wide(std::string_view text) {
  static_assert(sizeof(wchar_t) >= sizeof(char32_t), "a character must fit");
  std::wstring wide;
  while (!text.empty()) {
    const auto [point, size] = first_character(text);
    wide += static_cast<wchar_t>(size == 0 ? U'\xFFFD' : point);
    text.remove_prefix(std::max<std::size_t>(size, 1));
  }
  return wide;
}

std::string printable(std::string_view text) {
  std::string line;
  bool blank = false;
  while (!text.empty()) {
    const auto [point, size] = first_character(text);
    if (size != 0 && within(kBlanks, point)) {
      blank = true;
    } else {
      if (blank && !line.empty()) line += ' ';
      blank = false;
      line += size == 0 || within(kInvisible, point) ? kReplacementCharacter : text.substr(0, size);
    }
    text.remove_prefix(std::max<std::size_t>(size, 1));
  }
  return line;
}

}  // namespace cmt
