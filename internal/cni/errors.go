package cni

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"berth"
)

// The codes of errors. Those below 100 are the specification's, the others
// Berth's own; docs/cni.md lists them.
const (
	codeVersion     = types.ErrIncompatibleCNIVersion
	codeUnsupported = types.ErrUnsupportedField
	codeUnknown     = types.ErrUnknownContainer
	codeEnvironment = types.ErrInvalidEnvironmentVariables
	codeIO          = types.ErrIOFailure
	codeDecode      = types.ErrDecodingFailure
	codeConfig      = types.ErrInvalidNetworkConfig
	codeNetNS       = types.ErrInvalidNetNS
	codeAgain       = types.ErrTryAgainLater
	codeUnavailable = types.ErrPluginNotAvailable
	codeLimited     = types.ErrLimitedConnectivity
	codeExists      = 100
	codeConflict    = 101
	codeDiffers     = 102
	codeInternal    = types.ErrInternal
)

// An Error is the answer to a call that failed.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// Error implements error.
func (e *Error) Error() string {
	if e.Details != "" {
		return e.Msg + ": " + e.Details
	}
	return e.Msg
}

func fail(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: oneLine(fmt.Sprintf(format, args...))}
}

// asError is the one table from the engine's errors to codes.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if err != error(e) && err.Error() != e.Error() && e.Details == "" {
			return &Error{Code: e.Code, Msg: oneLine(err.Error())}
		}
		return &Error{Code: e.Code, Msg: e.Msg, Details: e.Details}
	}
	var theirs *types.Error
	if errors.As(err, &theirs) { // of a program that was executed
		return &Error{Code: theirs.Code, Msg: theirs.Msg, Details: theirs.Details}
	}
	code := codeInternal
	for _, c := range []struct {
		is   error
		code uint
	}{
		{berth.ErrExists, codeExists}, {berth.ErrConflict, codeConflict}, {berth.ErrExhausted, codeAgain},
		{berth.ErrDrifted, codeDiffers}, {berth.ErrInvalid, codeConfig}, {berth.ErrUnsupported, codeUnavailable},
	} {
		if errors.Is(err, c.is) {
			code = c.code
			break
		}
	}
	return fail(code, "%v", err)
}

// oneLine joins the lines of an error.
func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }
