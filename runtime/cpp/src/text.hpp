#pragma once

#include <string>
#include <string_view>

namespace cmt {

/// One line of visible characters, by the rules of Python's `printable`.
///
/// Names come from folders and files of others: line breaks would forge further lines, escape
/// sequences reach a terminal, and direction marks make a line read as another. Blanks become one
/// space; what is not visible, and every byte that is no UTF-8, a replacement character.
std::string printable(std::string_view text);

/// The characters of a text, one each; a byte that is no UTF-8 becomes a replacement character.
std::wstring to_wide(std::string_view text);

}  // namespace cmt
