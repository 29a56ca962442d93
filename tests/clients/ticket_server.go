// A TLS server in Go that takes ticket keys from `keys agent --layout 32 --command`: a POST of the agent's JSON to its
// control socket. It listens for TLS when it has its first keys, and answers a POST when it runs the keys.
//
// ticket-server CONTROL TLS CERTIFICATE KEY (the first two are paths of Unix sockets)
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// instruction is what the agent gives. The first key encrypts.
type instruction struct {
	EncryptEpoch uint64 `json:"encryptEpoch"`
	Keys         []struct {
		Epoch uint64 `json:"epoch"`
		Key   []byte `json:"key"`
	} `json:"keys"`
}

// keys returns the keys in the order of SetSessionTicketKeys.
func (given instruction) keys() ([][32]byte, error) {
	if len(given.Keys) == 0 || given.Keys[0].Epoch != given.EncryptEpoch {
		return nil, fmt.Errorf("the first key does not encrypt")
	}
	keys := make([][32]byte, len(given.Keys))
	for place, one := range given.Keys {
		if len(one.Key) != 32 {
			return nil, fmt.Errorf("a key has %d bytes, expected 32", len(one.Key))
		}
		copy(keys[place][:], one.Key)
	}
	return keys, nil
}

func main() {
	pair, err := tls.LoadX509KeyPair(os.Args[3], os.Args[4])
	must(err)
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	greet := http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, "hello") })
	var first sync.Once
	take := http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		var given instruction
		err := json.NewDecoder(io.LimitReader(request.Body, 65536)).Decode(&given)
		if err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
			return
		}
		keys, err := given.keys()
		if err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
			return
		}
		config.SetSessionTicketKeys(keys)
		first.Do(func() {
			listener, err := net.Listen("unix", os.Args[2])
			must(err)
			server := &http.Server{Handler: greet}
			server.SetKeepAlivesEnabled(false)
			go func() { must(server.Serve(tls.NewListener(listener, config))) }()
		})
	})
	control, err := net.Listen("unix", os.Args[1])
	must(err)
	must(http.Serve(control, take))
}
