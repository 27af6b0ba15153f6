#pragma once

#include <cmt/image.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cmt {

constexpr std::uint64_t kMostPixels = 178956970;  ///< Pillow's limit too

/// An image as it is stored, and what the file says about its orientation.
struct Decoded {
  Image image;
  std::string exif;
  std::string xmp;
};

Decoded decode_jpeg(std::string_view content);
Decoded decode_png(std::string_view content, const std::optional<ImageRange>& range);

/// Throws InputError for a file whose content cannot be, with what is wrong.
[[noreturn]] void refuse_damaged(const std::string& damage);

/// Throws InputError for sizes that nobody can have meant, and for more than `most` pixels, which
/// is what the file's bytes can hold. calib_data/limits.py has the same numbers.
void check_size(std::uint64_t width, std::uint64_t height, std::uint64_t most);

}  // namespace cmt
