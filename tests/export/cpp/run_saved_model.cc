// Runs a signature of an exported model with the SavedModel loader that TensorFlow Serving uses. No Python.
//
//   run_saved_model FOLDER SIGNATURE SCORE_THRESHOLD IOU_THRESHOLD OUT IMAGE...
//
// The image files go in as one batch, and the thresholds for each of them if the signature has such inputs. Every
// output becomes OUT/NAME.pb, a serialized TensorProto; OUT must exist.

#include <cstdlib>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/platform/env.h"

namespace tf = tensorflow;

void check(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "error: " << status << "\n";
  std::exit(1);
}

tf::Tensor read_files(const std::vector<std::string>& paths) {
  tf::Tensor batch(tf::DT_STRING, {static_cast<int64_t>(paths.size())});
  for (size_t i = 0; i < paths.size(); ++i) {
    std::string bytes;
    check(tf::ReadFileToString(tf::Env::Default(), paths[i], &bytes));
    batch.vec<tf::tstring>()(i) = bytes;
  }
  return batch;
}

tf::Tensor repeat(float value, int64_t count) {
  tf::Tensor batch(tf::DT_FLOAT, {count});
  batch.vec<float>().setConstant(value);
  return batch;
}

int main(int argc, char** argv) {
  if (argc < 7) {
    std::cerr << "usage: " << argv[0] << " FOLDER SIGNATURE SCORE_THRESHOLD IOU_THRESHOLD OUT IMAGE...\n";
    return 1;
  }
  const std::string folder = argv[1], signature_name = argv[2], out = argv[5];
  const float score_threshold = std::atof(argv[3]), iou_threshold = std::atof(argv[4]);
  const std::vector<std::string> images(argv + 6, argv + argc);

  tf::SavedModelBundleLite model;
  check(tf::LoadSavedModel({}, {}, folder, {"serve"}, &model));
  const auto found = model.GetSignatures().find(signature_name);
  if (found == model.GetSignatures().end()) {
    std::cerr << "error: " << folder << " has no signature " << signature_name << "\n";
    return 1;
  }
  const tf::SignatureDef& signature = found->second;

  std::vector<std::pair<std::string, tf::Tensor>> inputs;
  for (const auto& [name, info] : signature.inputs()) {
    if (name == "image_bytes") {
      inputs.emplace_back(info.name(), read_files(images));
    } else if (name == "score_threshold" || name == "iou_threshold") {
      inputs.emplace_back(info.name(), repeat(name[0] == 's' ? score_threshold : iou_threshold, images.size()));
    } else {
      std::cerr << "error: " << signature_name << " has an input " << name << ", not known here\n";
      return 1;
    }
  }
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<tf::Tensor> outputs;
  check(model.GetSession()->Run(inputs, fetches, {}, &outputs));
  for (size_t i = 0; i < names.size(); ++i) {
    tf::TensorProto proto;
    outputs[i].AsProtoField(&proto);
    check(tf::WriteStringToFile(tf::Env::Default(), out + "/" + names[i] + ".pb", proto.SerializeAsString()));
  }
}
