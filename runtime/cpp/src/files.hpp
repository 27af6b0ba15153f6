#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace cmt {

/// A whole file; throws InputError that names it.
std::string read_file(const std::filesystem::path& path);

/// Hexadecimal sha256.
std::string sha256(std::string_view content);
std::string sha256_file(const std::filesystem::path& path);

}  // namespace cmt
