#include "jpeg_segments.hpp"

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <cstdint>
#include <map>
#include <vector>

#include "decoders.hpp"
#include "orientation.hpp"

namespace cmt {
namespace {

constexpr std::string_view kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
constexpr int kProgressive = 0xC2;
constexpr int kScan = 0xDA;
constexpr int kEnd = 0xD9;
constexpr int kApp0 = 0xE0;
constexpr int kApp1 = 0xE1;
constexpr int kApp14 = 0xEE;
constexpr int kComment = 0xFE;
constexpr std::uint64_t kMostScans = 100;
constexpr std::uint64_t kMostScanned = 16 * kMostPixels;  ///< pixels in all scans
constexpr std::uint64_t kPixelsPerByte = 512;             ///< at most: each block of 64 takes a bit

int byte_at(std::string_view bytes, std::size_t place) {
  return static_cast<std::uint8_t>(bytes[place]);
}

unsigned big_endian_16(std::string_view bytes, std::size_t place) {
  return static_cast<unsigned>(byte_at(bytes, place) << 8 | byte_at(bytes, place + 1));
}

bool starts_with(std::string_view text, std::string_view beginning) {
  return text.substr(0, beginning.size()) == beginning;
}

bool is_marker(int code) { return code != 0x00 && code != 0xFF && (code < 0xD0 || code > 0xD7); }

bool is_frame(int marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

/// Frames, tables, scans, and what is only said.
bool is_known(int marker) {
  return is_frame(marker) || marker == 0xC4 || marker == kScan || marker == 0xDB ||
         marker == 0xDD || (marker & 0xF0) == kApp0 || marker == kComment;
}

/// Where the marker after coded data begins, or the end.
std::size_t next_marker(std::string_view content, std::size_t at) {
  for (at = content.find('\xFF', at); at != std::string_view::npos && at + 1 < content.size();
       at = content.find('\xFF', at + 1)) {
    if (is_marker(byte_at(content, at + 1))) return at;
  }
  return content.size();
}

/// The marker's place behind what fills the gap before it.
std::size_t marker_at(std::string_view content, std::size_t at) {
  const std::size_t code = content.find_first_not_of('\xFF', at);
  if (code == std::string_view::npos || code == at || !is_marker(byte_at(content, code))) {
    refuse_damaged("it ends too early");
  }
  return code - 1;
}

/// Whether a segment says something that makes no pixels; Adobe's and JFIF's tell colours.
bool only_said(int marker, std::string_view data) {
  if (marker == kApp0) return !(starts_with(data, {"JFIF\0", 5}) && data.size() >= 14);
  if (marker == kApp14) return !(starts_with(data, "Adobe") && data.size() >= 12);
  return marker == kComment || (marker & 0xF0) == kApp0;
}

void collect_metadata(std::string_view data, Jpeg& jpeg) {
  if (starts_with(data, kExif)) {
    jpeg.exif += jpeg.exif.empty() ? data : data.substr(kExif.size());
  } else if (starts_with(data, kXmp)) {
    jpeg.xmp = data.substr(kXmp.size());
  }
}

/// What the frames' headers say.
struct Frames {
  int count = 0;
  int marker = 0;
  std::string_view data;
  std::vector<std::string_view> scans;
};

/// Whether each coefficient of each component has come to its last bit. Decoders smooth over what
/// is missing, each version its own way.
bool complete(std::string_view frame, const std::vector<std::string_view>& scans) {
  std::map<int, std::array<int, 64>> missing;
  for (std::size_t at = 6; at < frame.size(); at += 3) missing[byte_at(frame, at)].fill(-1);
  for (const std::string_view scan : scans) {
    const std::size_t count = scan.empty() ? 0 : static_cast<std::uint8_t>(scan[0]);
    if (scan.size() != 4 + 2 * count) return false;
    const int first = byte_at(scan, scan.size() - 3);
    const int last = byte_at(scan, scan.size() - 2);
    const int bits = byte_at(scan, scan.size() - 1) & 15;
    for (std::size_t i = 0; i < count; ++i) {
      const auto found = missing.find(byte_at(scan, 1 + 2 * i));
      if (found == missing.end() || first > last || last >= 64) return false;
      std::fill(found->second.begin() + first, found->second.begin() + last + 1, bits);
    }
  }
  return std::all_of(missing.begin(), missing.end(), [](const auto& component) {
    const auto& bits = component.second;
    return std::all_of(bits.begin(), bits.end(), [](int left) { return left == 0; });
  });
}

void check(const Frames& frames, std::size_t size) {
  if (frames.count != 1 || frames.scans.empty()) refuse_damaged("no pixels, or two pictures");
  if (frames.data.size() < 6) refuse_damaged("odd segment");
  const std::uint64_t height = big_endian_16(frames.data, 1);
  const std::uint64_t width = big_endian_16(frames.data, 3);
  const int components = byte_at(frames.data, 5);
  if (frames.marker > kProgressive || byte_at(frames.data, 0) != 8 ||
      (components != 1 && components != 3 && components != 4)) {
    throw InputError("it is of a rare kind of JPEG: convert it");
  }
  check_size(width, height, kPixelsPerByte * size);
  const std::uint64_t scans = frames.scans.size();
  if (scans > kMostScans || scans * width * height > kMostScanned) {
    throw InputError("its " + std::to_string(scans) + " scans are too much work: save it again");
  }
  if (frames.marker == kProgressive && !complete(frames.data, frames.scans)) {
    refuse_damaged("scans are missing");
  }
}

}  // namespace

Jpeg read_jpeg(std::string_view content) {
  Jpeg jpeg;
  jpeg.pixels = "\xFF\xD8";
  Frames frames;
  for (std::size_t at = 2;;) {
    const std::size_t begin = marker_at(content, at);
    const int marker = byte_at(content, begin + 1);
    if (marker == kEnd) break;
    const std::size_t length = content.size() - begin < 4 ? 0 : big_endian_16(content, begin + 2);
    if (length < 2 || length > content.size() - begin - 2 || !is_known(marker)) {
      refuse_damaged("odd segment");
    }
    const std::string_view data = content.substr(begin + 4, length - 2);
    at = begin + 2 + length;
    if (is_frame(marker)) {
      ++frames.count;
      frames.marker = marker;
      frames.data = data;
    } else if (marker == kScan) {
      if (frames.count == 0) refuse_damaged("no size before its pixels");
      frames.scans.push_back(data);
      at = next_marker(content, at);
    } else if (marker == kApp1) {
      collect_metadata(data, jpeg);
    }
    if (!only_said(marker, data)) jpeg.pixels += content.substr(begin, at - begin);
  }
  check(frames, content.size());
  jpeg.pixels += "\xFF\xD9";
  return jpeg;
}

}  // namespace cmt
