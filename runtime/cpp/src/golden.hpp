#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "npy.hpp"

namespace cmt {

/// The golden images, uint8 (images, height, width, 3), or the pixels of the golden photo, with
/// images 0 for any number; throws InputError for another shape.
Array<std::uint8_t> read_pixels(const Bundle& bundle, const FileEntry& entry,
                                const std::vector<std::size_t>& shape);

/// Whether a file answered as it should.
struct Check {
  std::optional<bool> passed;  ///< none where this machine cannot tell
  std::string detail;
};

/// Runs a file on the golden images and compares, by the rule of `check_artefact` in
/// bundle/golden.py: any of the stored answers is right; on a device that is named, another one
/// than the CPU may differ as FP16 does where it lacks the file's arithmetic, and the answers are
/// held against the FP32 file's as well. `load` gives the file, loaded on that device.
Check check_golden(const Bundle& bundle, const Artefact& artefact, const std::string& device,
                   const std::function<std::shared_ptr<const Model>()>& load);

}  // namespace cmt
