// Package cni is the CNI plugin of type "berth": specification versions 0.3.0
// to 1.1.0, in terms of the engine. A network configuration is a network of
// Berth's, an attachment is an endpoint that carries labels.
package cni
