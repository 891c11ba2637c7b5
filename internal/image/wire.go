package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth"
)

// A wire carries requests to registries. It tries again what may succeed the
// second time, gives up what has stalled, and speaks plain http to nobody who
// may not.
type wire struct {
	strict, lax *http.Transport // lax: any certificate will do
	insecure    []string        // HOST or HOST:PORT
	prefixes    []netip.Prefix

	stall time.Duration // the longest silence
	tries int           // of one request
	pause time.Duration // before the second try; it doubles
	most  time.Duration // the longest Retry-After that is obeyed
}

func newWire(insecure []string) (*wire, error) {
	w := &wire{stall: time.Minute, tries: 5, pause: 500 * time.Millisecond, most: time.Minute}
	for _, s := range insecure {
		if p, err := netip.ParsePrefix(s); err == nil {
			w.prefixes = append(w.prefixes, p)
			continue
		}
		if u, err := url.Parse("//" + s); err != nil || u.Host != s || s == "" {
			return nil, fmt.Errorf("insecure registry %q: not HOST, HOST:PORT or a prefix of addresses: %w", clip(s), berth.ErrInvalid)
		}
		w.insecure = append(w.insecure, s)
	}
	// Without HTTP/2: layers side by side in one connection are slower than
	// each in its own.
	w.strict = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // digests are of what is sent
	}
	w.lax = w.strict.Clone()
	w.lax.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // for those hosts only
	return w, nil
}

// mirror reads the host of a mirror; http:// before it says that it is
// insecure.
func (w *wire) mirror(s string) (string, error) {
	scheme, host, ok := strings.Cut(strings.TrimSuffix(s, "/"), "://")
	if !ok {
		scheme, host = "https", scheme
	}
	if u, err := url.Parse("//" + host); err != nil || u.Host != host || host == "" || scheme != "https" && scheme != "http" {
		return "", fmt.Errorf("mirror %q: not a host, with or without https:// before it: %w", clip(s), berth.ErrInvalid)
	}
	if scheme == "http" {
		w.insecure = append(w.insecure, host)
	}
	return host, nil
}

// trusts reports whether a host may be spoken to without TLS, or with a
// certificate that nobody vouches for.
func (w *wire) trusts(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	for _, s := range w.insecure {
		if strings.EqualFold(s, hostport) || strings.EqualFold(s, host) {
			return true
		}
	}
	if strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	a = a.Unmap()
	for _, p := range w.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return a.IsLoopback()
}

// errPlain says that somebody may not be spoken to without TLS.
var errPlain = errors.New("plain http is only for registries that are named as insecure, and for the loopback interface")

// allowed refuses plain http, which anybody on the way can read and change.
// A registry that is insecure itself may send its clients to another place.
func (w *wire) allowed(req *http.Request) error {
	if req.URL.Scheme != "http" || w.trusts(req.URL.Host) {
		return nil
	}
	if via := req.Response; via != nil && via.Request.URL.Scheme == "http" && req.Header.Get("Authorization") == "" {
		return nil
	}
	return errPlain
}

// RoundTrip sends a request that has no body, or one that can be sent again.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := w.allowed(req); err != nil {
		return nil, err
	}
	pause := w.pause
	for try := 1; ; try++ {
		resp, err := w.once(req)
		if req.Context().Err() != nil || try >= w.tries || !again(resp, err) || req.Body != nil && req.GetBody == nil {
			return resp, err
		}
		wait := pause
		if resp != nil {
			if after := retryAfter(resp); after > w.most {
				return resp, nil // what it says is in the error
			} else if after > 0 {
				wait = after
			}
			io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // so that the connection can be used again
			resp.Body.Close()
		}
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
		pause *= 2
		if req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// once sends a request, and calls it off when nothing comes for too long.
func (w *wire) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stalled := fmt.Errorf("%s has sent nothing for %v", req.URL.Host, w.stall)
	timer := time.AfterFunc(w.stall, func() { cancel(stalled) })
	t := w.strict
	if w.trusts(req.URL.Host) {
		t = w.lax
	}
	resp, err := t.RoundTrip(req.WithContext(ctx))
	if !timer.Stop() || err != nil {
		if context.Cause(ctx) == stalled {
			err = &stallError{stalled}
		}
		cancel(nil)
		if resp != nil {
			resp.Body.Close()
		}
		return nil, err
	}
	resp.Body = &watched{body: resp.Body, ctx: ctx, cancel: cancel, stall: w.stall, stalled: stalled, timer: timer}
	return resp, nil
}

// A stallError says that somebody has sent nothing for too long.
type stallError struct{ error }

// watched is the body of an answer.
type watched struct {
	body    io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	stall   time.Duration
	stalled error
	timer   *time.Timer
}

// Read does not count the time between two calls: a slow disk is not a stall.
func (b *watched) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(b.ctx) == b.stalled {
		err = &stallError{b.stalled}
	}
	return n, err
}

func (b *watched) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// again reports whether a second try may succeed where the first did not.
func again(resp *http.Response, err error) bool {
	if err != nil {
		return cut(err)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// cut reports whether an error is of a connection that broke.
func cut(err error) bool {
	if _, ok := errors.AsType[*stallError](err); ok {
		return true
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ETIMEDOUT, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// retryAfter is how long the answer asks to wait; 0: it does not say.
func retryAfter(resp *http.Response) time.Duration {
	s := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
