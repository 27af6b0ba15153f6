#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace cmt {

/// What a caller takes that knows no better: above the largest image that is decoded.
constexpr std::uint64_t kLargestFile = std::uint64_t{1} << 31;

/// A whole regular file; throws InputError that names it for another kind, which may have no end,
/// and for more than `most` bytes.
std::string read_file(const std::filesystem::path& path, std::uint64_t most = kLargestFile);

/// Hexadecimal sha256.
std::string sha256(std::string_view content);

/// The same of a regular file, which is read up to `most` bytes.
std::string sha256_file(const std::filesystem::path& path, std::uint64_t most);

}  // namespace cmt
