package berth

import "errors"

// The errors of Berth. Every error of the engine matches exactly one of them
// with errors.Is, or is an error of the kernel or the disk as it came.
var (
	// ErrNotFound: no such network, sandbox, endpoint or port.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, the interface or the endpoint is there already.
	ErrExists = errors.New("already exists")
	// ErrInUse: it cannot be removed while something is connected to it.
	ErrInUse = errors.New("in use")
	// ErrConflict: an address, a prefix or a host port belongs to somebody else.
	ErrConflict = errors.New("conflict")
	// ErrInvalid: the request cannot be right, whatever the state of the host.
	ErrInvalid = errors.New("invalid")
	// ErrExhausted: no address, prefix, port or bridge port is left.
	ErrExhausted = errors.New("exhausted")
	// ErrUnsupported: this kernel lacks what the request needs.
	ErrUnsupported = errors.New("unsupported by this kernel")
	// ErrDrifted: the kernel is not what the store wants.
	ErrDrifted = errors.New("drifted")
)
