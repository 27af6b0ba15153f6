#include "backend.hpp"

#include <algorithm>
#include <cmt/error.hpp>
#include <set>

#include "backends.hpp"
#include "translate.hpp"

namespace cmt {
namespace {

/// The one place that says which runtimes this build has.
const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> all{
#ifdef CMT_WITH_OPENVINO
      &kOpenVino,
#endif
#ifdef CMT_WITH_ONNXRUNTIME
      &kOnnxRuntime,
#endif
#ifdef CMT_WITH_TENSORRT
      &kTensorRt,
#endif
  };
  return all;
}

const Backend* find_backend(const std::string& target) {
  const auto found = std::find_if(backends().begin(), backends().end(),
                                  [&](const Backend* one) { return one->target == target; });
  return found == backends().end() ? nullptr : *found;
}

/// Why a runtime's files do not run on a device here; nothing where they do, or none is named.
std::optional<std::string> not_on_device(const Backend& backend, const std::string& device) {
  if (device.empty()) return std::nullopt;
  const auto devices = backend.devices == nullptr ? std::vector<std::string>{} : backend.devices();
  std::string known;
  for (const std::string& one : devices) {
    if (one == device) return std::nullopt;
    known += (known.empty() ? "" : ", ") + one;
  }
  return std::string(backend.target) + " has no device " + device +
         " here: " + (known.empty() ? "there is no choice" : known);
}

/// A runtime's session whose exceptions leave as Errors.
class GuardedSession : public Session {
 public:
  GuardedSession(std::string file, std::unique_ptr<Session> session)
      : file_(std::move(file)), session_(std::move(session)) {}

  void* input() override { return session_->input(); }
  void infer() override {
    translated(file_, [&] { session_->infer(); });
  }
  const std::vector<Output>& outputs() const override { return session_->outputs(); }

 private:
  std::string file_;
  std::unique_ptr<Session> session_;
};

/// The same of a loaded file.
class GuardedModel : public Model {
 public:
  GuardedModel(std::string file, std::shared_ptr<const Model> model)
      : file_(std::move(file)), model_(std::move(model)) {}

  std::unique_ptr<Session> make_session() const override {
    return translated(
        file_, [&] { return std::make_unique<GuardedSession>(file_, model_->make_session()); });
  }

 private:
  std::string file_;
  std::shared_ptr<const Model> model_;
};

}  // namespace

void check_signature(const Manifest& manifest, const Artefact& artefact,
                     const Signature& signature) {
  const Preprocessing& p = manifest.preprocessing;
  const auto height = static_cast<std::size_t>(p.height);
  const auto width = static_cast<std::size_t>(p.width);
  const std::vector<std::size_t> planes{manifest.batch, 3, height, width};
  const std::vector<std::size_t> pixels{manifest.batch, height, width, 3};
  if (!signature.known || signature.takes_bytes != p.in_graph ||
      signature.input != (p.in_graph ? pixels : planes) ||
      signature.outputs.size() != manifest.outputs.size()) {
    throw InputError(artefact.file.path + " does not have the manifest's input and outputs: " +
                     "export the bundle again");
  }
  for (const std::vector<std::size_t>& output : signature.outputs) {
    if (output.empty() || output.front() != manifest.batch) {
      throw InputError(artefact.file.path + " does not answer with an entry for each image: " +
                       "export the bundle again");
    }
  }
  const std::size_t labels = manifest.labels.size();
  const bool classifies = signature.outputs.size() == 1 && signature.outputs.front().size() == 2;
  if (labels != 0 && classifies && signature.outputs.front()[1] != labels) {
    throw InputError(artefact.file.path + " does not answer with one number for each label: " +
                     "export the bundle again");
  }
}

void require_device(const Bundle& bundle, const std::string& device) {
  std::set<std::string> reasons;
  for (const Artefact& artefact : bundle.manifest().artefacts) {
    const Backend* backend = find_backend(artefact.target);
    if (backend == nullptr || backend->missing()) continue;
    const auto reason = not_on_device(*backend, device);
    if (!reason) return;
    reasons.insert(*reason);
  }
  std::string all;
  for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
  if (!all.empty()) throw InputError(all);
}

std::optional<std::string> not_runnable(const Bundle& bundle, const Artefact& artefact,
                                        const std::string& device) {
  const Backend* backend = find_backend(artefact.target);
  if (backend == nullptr) return "cmt_runtime was built without a backend for " + artefact.target;
  if (auto reason = backend->missing()) return reason;
  if (auto reason = not_on_device(*backend, device)) return reason;
  if (!backend->runs_native_code) return std::nullopt;
  const auto [library, version] = backend->version();
  if (artefact.built_with != library) {
    return "it was built with " + artefact.built + "; this build has " + library + " " + version;
  }
  if (bundle.trusts_engines()) return std::nullopt;
  return "an engine is native code and nobody vouches for this one: give the public key of " +
         std::string("whoever signed the bundle, or say that unsigned engines are trusted");
}

std::optional<std::string> computes_otherwise(const Artefact& artefact, const std::string& device) {
  const auto ask = find_backend(artefact.target)->computes_otherwise;
  if (ask == nullptr) return std::nullopt;
  return translated(artefact.file.path, [&] { return ask(artefact, device); });
}

bool runs_on_cpu(const Artefact& artefact) {
  return !find_backend(artefact.target)->runs_native_code;
}

std::shared_ptr<const Model> load_model(const Bundle& bundle, const Artefact& artefact, int threads,
                                        const std::string& device) {
  if (const auto reason = not_runnable(bundle, artefact, device)) {
    throw InputError(artefact.file.path + ": " + *reason);
  }
  const std::string& file = artefact.file.path;
  return translated(file, [&] {
    auto model = find_backend(artefact.target)->load(bundle, artefact, threads, device);
    return std::make_shared<GuardedModel>(file, std::move(model));
  });
}

std::vector<std::pair<std::string, std::string>> backend_versions() {
  std::vector<std::pair<std::string, std::string>> versions;
  for (const Backend* backend : backends()) versions.push_back(backend->version());
  return versions;
}

}  // namespace cmt
