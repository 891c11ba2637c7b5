package store

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"berth"

	"golang.org/x/sys/unix"
)

// Networks returns all networks, by id.
func (tx *Tx) Networks() ([]berth.Network, error) {
	b, err := tx.rootBucket(networks)
	if err != nil {
		return nil, err
	}
	return all[berth.Network](b, nil)
}

// shortest is how many digits of an id stand for it at least.
const shortest = 4

// Network returns a network by name, by id, or by the beginning of an id that
// no other network's has. Its error matches [berth.ErrNotFound] if there is
// none, [berth.ErrInvalid] if there are several.
func (tx *Tx) Network(ref string) (n berth.Network, err error) {
	err = tx.look("network", networks, networkNames, ref, &n)
	return n, err
}

// look finds a record of the network file by id, by name, or by the beginning
// of an id that no other one's has.
func (tx *Tx) look(what string, records, names []byte, ref string, v any) error {
	b, err := tx.rootBucket(records)
	if err != nil {
		return err
	}
	if got := b.get([]byte(ref)); got != nil {
		return b.decode(got, v)
	}
	ids, err := tx.rootBucket(names)
	if err != nil {
		return err
	}
	if id := ids.get([]byte(ref)); id != nil {
		return b.decode(b.get(id), v)
	}
	var first []byte
	found := 0
	if len(ref) >= shortest {
		for _, got := range b.scan([]byte(ref)) {
			if found++; found == 1 {
				first = got
			}
		}
	}
	switch found {
	case 0:
		return fmt.Errorf("%s %s: %w", what, cut(ref), berth.ErrNotFound)
	case 1:
		return b.decode(first, v)
	}
	return fmt.Errorf("%s %s: %d have an id that begins so: %w", what, cut(ref), found, berth.ErrInvalid)
}

// PutNetwork records a network under its id and its name.
func (tx *Tx) PutNetwork(n berth.Network) error {
	names, err := tx.rootBucketToWrite(networkNames)
	if err != nil {
		return err
	}
	if err := names.put([]byte(n.Name), []byte(n.ID)); err != nil {
		return err
	}
	b, err := tx.rootBucketToWrite(networks)
	if err != nil {
		return err
	}
	return b.putJSON([]byte(n.ID), n)
}

// DeleteNetwork forgets a network and the cursors of its subnets. That it is
// not there is no error.
func (tx *Tx) DeleteNetwork(id string) error {
	b, err := tx.rootBucketToWrite(networks)
	if err != nil {
		return err
	}
	v := b.get([]byte(id))
	if v == nil {
		return nil
	}
	var n berth.Network
	if err := b.decode(v, &n); err != nil {
		return err
	}
	names, err := tx.rootBucketToWrite(networkNames)
	if err != nil {
		return err
	}
	if err := names.delete([]byte(n.Name)); err != nil {
		return err
	}
	if err := deleteAll(tx.runBucket(cursors), key(id, "")); err != nil {
		return err
	}
	return b.delete([]byte(id))
}

// deleteAll deletes the keys that begin with prefix.
func deleteAll(b bucket, prefix []byte) error {
	var keys [][]byte
	for k := range b.scan(prefix) {
		keys = append(keys, append([]byte{}, k...))
	}
	for _, k := range keys {
		if err := b.delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Sandboxes returns all sandboxes, by id.
func (tx *Tx) Sandboxes() ([]berth.Sandbox, error) {
	return all[berth.Sandbox](tx.runBucket(sandboxes), nil)
}

// Sandbox returns a sandbox by its id.
func (tx *Tx) Sandbox(id string) (s berth.Sandbox, err error) {
	b := tx.runBucket(sandboxes)
	v := b.get([]byte(id))
	if v == nil {
		return s, fmt.Errorf("sandbox %s: %w", cut(id), berth.ErrNotFound)
	}
	return s, b.decode(v, &s)
}

// SandboxByName returns a sandbox by its name.
func (tx *Tx) SandboxByName(name string) (s berth.Sandbox, err error) {
	id := tx.runBucket(sandboxNames).get([]byte(name))
	if id == nil {
		return s, fmt.Errorf("sandbox %s: %w", cut(name), berth.ErrNotFound)
	}
	return tx.Sandbox(string(id))
}

// PutSandbox records a sandbox under its id and its name.
func (tx *Tx) PutSandbox(s berth.Sandbox) error {
	if err := tx.runBucket(sandboxNames).put([]byte(s.Name), []byte(s.ID)); err != nil {
		return err
	}
	return tx.runBucket(sandboxes).putJSON([]byte(s.ID), s)
}

// DeleteSandbox forgets a sandbox. That it is not there is no error.
func (tx *Tx) DeleteSandbox(id string) error {
	b := tx.runBucket(sandboxes)
	v := b.get([]byte(id))
	if v == nil {
		return nil
	}
	var s berth.Sandbox
	if err := b.decode(v, &s); err != nil {
		return err
	}
	names := tx.runBucket(sandboxNames)
	if string(names.get([]byte(s.Name))) == id {
		if err := names.delete([]byte(s.Name)); err != nil {
			return err
		}
	}
	return b.delete([]byte(id))
}

// An EndpointKey names an endpoint.
type EndpointKey struct{ Sandbox, Interface string }

func (k EndpointKey) bytes() []byte { return key(k.Sandbox, k.Interface) }

// Endpoints returns all endpoints, by sandbox.
func (tx *Tx) Endpoints() ([]berth.Endpoint, error) {
	return all[berth.Endpoint](tx.runBucket(endpoints), nil)
}

// EndpointsOf returns the endpoints of a sandbox, by interface.
func (tx *Tx) EndpointsOf(sandbox string) ([]berth.Endpoint, error) {
	return all[berth.Endpoint](tx.runBucket(endpoints), key(sandbox, ""))
}

// EndpointsOn returns the endpoints on a network, by sandbox.
func (tx *Tx) EndpointsOn(network string) ([]berth.Endpoint, error) {
	var out []berth.Endpoint
	prefix := key(network, "")
	for k := range tx.runBucket(endpointsOn).scan(prefix) {
		sandbox, dev, _ := strings.Cut(string(k[len(prefix):]), "\x00")
		e, err := tx.Endpoint(sandbox, dev)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Vacant reports whether a network has no endpoint, whatever the number of the
// others.
func (tx *Tx) Vacant(network string) bool {
	for range tx.runBucket(endpointsOn).scan(key(network, "")) {
		return false
	}
	return true
}

// Endpoint returns the endpoint at an interface of a sandbox.
func (tx *Tx) Endpoint(sandbox, dev string) (e berth.Endpoint, err error) {
	b := tx.runBucket(endpoints)
	v := b.get(key(sandbox, dev))
	if v == nil {
		return e, fmt.Errorf("endpoint %s of sandbox %s: %w", cut(dev), cut(sandbox), berth.ErrNotFound)
	}
	return e, b.decode(v, &e)
}

// PutEndpoint records an endpoint and takes its addresses. Scope is where they
// must be unique: "" for all networks whose addresses the host sees, else the
// network's id.
func (tx *Tx) PutEndpoint(e berth.Endpoint, scope string) error {
	k := EndpointKey{e.Sandbox, e.Interface}
	if err := tx.DeleteEndpoint(e.Sandbox, e.Interface); err != nil {
		return err
	}
	for _, p := range e.Addrs {
		if err := tx.runBucket(addresses).put(key(scope, p.Addr().String()), k.bytes()); err != nil {
			return err
		}
	}
	if err := tx.runBucket(endpointsOn).put(key(e.Network, e.Sandbox, e.Interface), []byte(scope)); err != nil {
		return err
	}
	return tx.runBucket(endpoints).putJSON(k.bytes(), e)
}

// DeleteEndpoint forgets an endpoint and gives its addresses back. That it is
// not there is no error.
func (tx *Tx) DeleteEndpoint(sandbox, dev string) error {
	b := tx.runBucket(endpoints)
	k := key(sandbox, dev)
	v := b.get(k)
	if v == nil {
		return nil
	}
	var e berth.Endpoint
	if err := b.decode(v, &e); err != nil {
		return err
	}
	on, onKey := tx.runBucket(endpointsOn), key(e.Network, sandbox, dev)
	scope := string(on.get(onKey))
	for _, p := range e.Addrs {
		a := tx.runBucket(addresses)
		if ak := key(scope, p.Addr().String()); string(a.get(ak)) == string(k) {
			if err := a.delete(ak); err != nil {
				return err
			}
		}
	}
	if err := on.delete(onKey); err != nil {
		return err
	}
	return b.delete(k)
}

// Taken returns the endpoint that has an address in a scope.
func (tx *Tx) Taken(scope string, a netip.Addr) (EndpointKey, bool) {
	v := tx.runBucket(addresses).get(key(scope, a.String()))
	if v == nil {
		return EndpointKey{}, false
	}
	sandbox, dev, _ := strings.Cut(string(v), "\x00")
	return EndpointKey{sandbox, dev}, true
}

// Cursor returns the address that was handed out last in a subnet of a
// network; it is not valid if none was.
func (tx *Tx) Cursor(network string, subnet netip.Prefix) (netip.Addr, error) {
	v := tx.runBucket(cursors).get(key(network, subnet.String()))
	if v == nil {
		return netip.Addr{}, nil
	}
	return netip.ParseAddr(string(v))
}

// SetCursor records the address that was handed out last.
func (tx *Tx) SetCursor(network string, subnet netip.Prefix, a netip.Addr) error {
	return tx.runBucket(cursors).put(key(network, subnet.String()), []byte(a.String()))
}

// cut keeps what a user typed short enough for one line.
func cut(s string) string {
	if len(s) > 60 {
		return s[:57] + "…"
	}
	return s
}

// Generation returns what SetGeneration kept: the number of the firewall's last
// commit that was ours; 0 if none was. It needs no transaction.
func (s *Store) Generation() uint32 {
	fd, err := unix.Open(s.generationPath(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [4]byte
	if n, err := unix.Pread(fd, b[:], 0); err != nil || n != len(b) {
		return 0
	}
	return binary.BigEndian.Uint32(b[:])
}

// SetGeneration keeps a number until the next reboot. It is a hint that saves
// a look at the rules, so one that cannot be written, is lost, torn or stale
// does no harm; that is why it is a file of its own and no record: every change
// would pay a second transaction.
func (s *Store) SetGeneration(n uint32) {
	fd, err := unix.Open(s.generationPath(), unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Pwrite(fd, binary.BigEndian.AppendUint32(nil, n), 0)
}

func (s *Store) generationPath() string { return filepath.Join(s.run.dir, "generation") }
