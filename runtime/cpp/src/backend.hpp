#pragma once

#include <cmt/classifier.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace cmt {

/// One inference at a time on a loaded file; each thread has its own. Its Model must outlive it.
/// Those that `load_model` leads to throw Errors alone.
class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  virtual ~Session() = default;

  /// To be filled before `infer`, see `Preprocessor::feed`.
  virtual void* input() = 0;
  virtual void infer() = 0;
  /// Valid until the next `infer`.
  virtual const std::vector<Output>& outputs() const = 0;
};

/// A file loaded by its runtime; may be used by several threads at once.
class Model {
 public:
  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  virtual ~Model() = default;

  virtual std::unique_ptr<Session> make_session() const = 0;
};

/// What a loaded file takes and gives, in the file's own words.
struct Signature {
  std::vector<std::size_t> input;                 ///< shape
  bool takes_bytes = false;                       ///< the input is uint8, else float32
  std::vector<std::vector<std::size_t>> outputs;  ///< shapes
  bool known = false;  ///< one input of those types, float32 outputs, all shapes fixed
};

/// Throws InputError unless a file takes and gives what the manifest says: the input, as many
/// outputs, an entry of each for every image, and a number for every label.
void check_signature(const Manifest& manifest, const Artefact& artefact,
                     const Signature& signature);

/// The device that files run on by default, an engine apart.
constexpr const char* kCpu = "CPU";

/// Throws InputError, naming the devices that are, unless some runtime of this build that the
/// bundle has files for has this one; empty is each one's default.
void require_device(const Bundle& bundle, const std::string& device);

/// Why this build cannot, or may not, run a file on this machine and device; nothing where it does.
std::optional<std::string> not_runnable(const Bundle& bundle, const Artefact& artefact,
                                        const std::string& device = {});

/// How a device computes a file that it can run, where that is not as the file's settings say.
std::optional<std::string> computes_otherwise(const Artefact& artefact,
                                              const std::string& device = {});

/// Whether a file that this build runs does so on the CPU, where no device is named.
bool runs_on_cpu(const Artefact& artefact);

/// Loads a file of the bundle; `threads` 0 takes all CPUs, an empty device the default one. Throws
/// Errors alone.
std::shared_ptr<const Model> load_model(const Bundle& bundle, const Artefact& artefact, int threads,
                                        const std::string& device = {});

/// Name and version of the runtimes in this build.
std::vector<std::pair<std::string, std::string>> backend_versions();

}  // namespace cmt
