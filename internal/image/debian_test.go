package image

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A debian is Debian's docker-registry, running.
type debian struct {
	host, dir string
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// newDebian starts docker-registry with its settings in the environment, and
// ends it with the test.
func newDebian(t *testing.T, env ...string) *debian {
	t.Helper()
	d := &debian{dir: t.TempDir()}
	config := filepath.Join(d.dir, "config.yml")
	if err := os.WriteFile(config, []byte("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: "+d.dir+"}}\nhttp: {addr: '127.0.0.1:0', secret: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Env = append(os.Environ(), env...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("needs Debian's docker-registry: run scripts/setup: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(log)
	for d.host == "" && lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			d.host = m[1]
		}
	}
	if d.host == "" {
		t.Fatal("docker-registry did not start")
	}
	go func() {
		for lines.Scan() { // so that it never waits for us
		}
	}()
	return d
}

// made writes an image that umoci made of a tree to a layout.
func made(t *testing.T) (src string) {
	t.Helper()
	dir := t.TempDir()
	layout, rootfs := filepath.Join(dir, "layout"), filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(rootfs, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin", "hello"), []byte("#!/bin/sh\necho hello\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	img := layout + ":app"
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", img)
	run(t, "umoci", "insert", "--image", img, filepath.Join(rootfs, "bin"), "/bin")
	run(t, "umoci", "insert", "--image", img, "--opaque", filepath.Join(rootfs, "bin"), "/bin")
	run(t, "umoci", "config", "--image", img, "--config.user", "nobody", "--config.cmd", "hello", "--config.exposedports", "80/tcp")
	return "oci:" + img
}

func (d *debian) push(t *testing.T, src, path string, flags ...string) string {
	t.Helper()
	ref := d.host + "/" + path
	run(t, append(append([]string{"skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"}, flags...), src, "docker://"+ref)...)
	return ref
}

func TestDebianRegistry(t *testing.T) {
	d, s := newDebian(t), open(t, Options{})
	src := made(t)
	ref := d.push(t, src, "tools/app:1")
	img := pull(t, s, ref)
	if img.Config.User != "nobody" || !slices.Equal(img.Config.Cmd, []string{"hello"}) || len(img.Config.ExposedPorts) != 1 {
		t.Errorf("configuration %+v", img.Config)
	}
	if got := tree(t, lowerOf(t, s, img)[0]); !slices.Equal(got, []string{"bin/", "bin/hello #!/bin/sh\necho hello\n"}) {
		t.Errorf("unpacked %q", got)
	}
	// In Docker's format too.
	if again := pull(t, s, d.push(t, src, "tools/app:2", "--format", "v2s2")); !slices.Equal(again.Layers, img.Layers) {
		t.Errorf("in Docker's format the layers are %q", again.Layers)
	}
	for _, ref := range []string{"tools/app:3", "tools/none:1"} {
		if _, err := s.Pull(t.Context(), d.host+"/"+ref, PullOptions{}); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// A blob that was changed by one byte where the registry has it.
func TestChangedBlob(t *testing.T) {
	d, s := newDebian(t), open(t, Options{})
	ref := d.push(t, made(t), "app:1")
	img := pull(t, s, ref)
	m, _, err := s.documents(describe(read(t, s.path("blobs/sha256", img.Digest[7:])), types.OCIManifestSchema1))
	if err != nil {
		t.Fatal(err)
	}
	h := m.Layers[0].Digest
	path := filepath.Join(d.dir, "docker/registry/v2/blobs/sha256", h.Hex[:2], h.Hex, "data")
	data := flip(read(t, path))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	other := open(t, Options{})
	_, err = other.Pull(t.Context(), ref, PullOptions{})
	found := describe(data, "").Digest
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "the digest is "+found.String()+", it should be "+h.String()) {
		t.Errorf("%v", err)
	}
	if imgs, err := other.List(t.Context()); len(imgs) != 0 || err != nil {
		t.Errorf("kept: %v, %v", imgs, err)
	}
	if exists(other.blobPath(h)) {
		t.Error("the blob is kept")
	}
}

func TestPasswords(t *testing.T) {
	users := filepath.Join(t.TempDir(), "htpasswd")
	run(t, "htpasswd", "-Bbc", users, "me", "secret")
	d := newDebian(t, "REGISTRY_AUTH=htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM=x", "REGISTRY_AUTH_HTPASSWD_PATH="+users)
	ref := d.push(t, made(t), "app:1", "--dest-creds", "me:secret")
	config := func(user string) Options {
		dir := t.TempDir()
		auth := base64.StdEncoding.EncodeToString([]byte(user))
		if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{"%s":{"auth":"%s"}}}`, d.host, auth), 0o600); err != nil {
			t.Fatal(err)
		}
		return Options{DockerConfig: dir}
	}
	pull(t, open(t, config("me:secret")), ref)
	for name, o := range map[string]Options{"a wrong one": config("me:wrong"), "none": {DockerConfig: t.TempDir()}} {
		if _, err := open(t, o).Pull(t.Context(), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "docker login") || strings.Contains(err.Error(), "wrong") {
			t.Errorf("password: %s: %v", name, err)
		}
	}

	// A helper of the docker configuration is asked.
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\n[ \"$1 $host\" = \"get " + d.host + "\" ] && echo '{\"Username\":\"me\",\"Secret\":\"secret\"}' && exit\n" +
		"echo credentials not found in native keychain\nexit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credsStore":"test"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, open(t, Options{DockerConfig: dir}), ref)
	t.Setenv("DOCKER_CONFIG", dir)
	pull(t, open(t, Options{}), ref)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credsStore":"none-such"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, Options{DockerConfig: dir}).Pull(t.Context(), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "docker-credential-none-such") {
		t.Errorf("a helper that is not there: %v", err)
	}
}

// certificate makes one for a name that signs itself.
func certificate(t *testing.T, host string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pool = x509.NewCertPool()
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: raw}} {
		data := pem.EncodeToMemory(b)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(data)
	}
	return cert, key, pool
}

// elsewhere makes a store reach registry.test at another place.
func elsewhere(s *Store, to string) *Store {
	for _, tr := range []interface{ CloseIdleConnections() }{s.wire.strict, s.wire.lax} {
		tr.CloseIdleConnections()
	}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, to)
	}
	s.wire.strict.DialContext, s.wire.lax.DialContext = dial, dial
	return s
}

func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t, "registry.test")
	d := newDebian(t, "REGISTRY_HTTP_TLS_CERTIFICATE="+cert, "REGISTRY_HTTP_TLS_KEY="+key)
	d.push(t, made(t), "app:1")
	pull(t, open(t, Options{}), d.host+"/app:1") // of the loopback interface: any certificate will do
	const ref = "registry.test/app:1"

	s := elsewhere(open(t, Options{}), d.host)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	s.wire.strict.TLSClientConfig = &tls.Config{RootCAs: pool}
	pull(t, s, ref)
	if _, err := s.Pull(t.Context(), "other.test/app:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "not other.test") {
		t.Errorf("a certificate for another host: %v", err)
	}
	pull(t, elsewhere(open(t, Options{Insecure: []string{"registry.test"}}), d.host), ref)

	// Plain http is spoken to nobody who was not named.
	plain := newDebian(t)
	plain.push(t, made(t), "app:1")
	for _, ref := range []string{ref, "10.1.2.3:5000/app:1", "registry.test:80/app:1"} {
		s := elsewhere(open(t, Options{}), plain.host)
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), "insecure") {
			t.Errorf("%s speaks plain http: %v", ref, err)
		}
	}
	for ref, insecure := range map[string]string{ref: "registry.test", "10.1.2.3:5000/app:1": "10.0.0.0/8", "registry.test:80/app:1": "registry.test:80"} {
		pull(t, elsewhere(open(t, Options{Insecure: []string{insecure}}), plain.host), ref)
	}
}
